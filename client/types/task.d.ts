export function canPass(error: any): boolean;
export class Task {
    /**
     * @param {() => Promise<void>} work
     * @param {() => void} changed  called when the trouble has changed
     */
    constructor(work: () => Promise<void>, changed: () => void);
    /** @type {Trouble | null} what the last run met */
    trouble: Trouble | null;
    get running(): boolean;
    /**
     * Run now, however long it was to wait.
     * @returns {Promise<void>} when all that was asked for has ended, well or not
     */
    run(): Promise<void>;
    /**
     * Run in `delay` ms, or when the wait that a failure asked for is over.
     * @param {number} [delay]
     */
    soon(delay?: number): void;
    /** The line may be back: where no answer was the trouble, do not wait; what a 503 asked for stays. */
    wake(): void;
    start(): void;
    /** What runs ends, and nothing more begins by itself. */
    stop(): void;
    #private;
}
/**
 * retryAt: ms since 1970; null: not by itself
 */
export type Trouble = {
    error: unknown;
    retryAt: number | null;
};
