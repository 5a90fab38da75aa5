export class Bell {
    /** @param {BellOptions} options */
    constructor(options: BellOptions);
    /**
     * Begin: ask for the badge, now and from time to time, and listen to other tabs.
     * @returns {() => void} the end
     */
    start(): () => void;
    /** End: what is marked is still sent; what is asked for is called off. */
    close(): void;
    /** @returns {BellState} the same object until something changes */
    get state(): BellState;
    /**
     * @param {() => void} listener  called after a change
     * @returns {() => void} the end of it
     */
    subscribe(listener: () => void): () => void;
    /** Ask for the badge now, and for the list where it is open. */
    refresh(): Promise<void>;
    /**
     * Show a list, or set its filter anew.
     * @param {Filter} [filter]
     */
    open(filter?: Filter): Promise<void>;
    /** Show older events too. */
    more(): Promise<void>;
    /** @param {EventId | EventId[]} ids */
    markRead(ids: EventId | EventId[]): void;
    /** @param {EventId | EventId[]} ids */
    markUnread(ids: EventId | EventId[]): void;
    /** Mark all that the list's filter matches: the newest event shown, and the older ones, shown or not. */
    markAllRead(): void;
    /** Do again what failed, all of it, and what waits. */
    retry(): Promise<void>;
    /** Forget what failed. */
    dismiss(): void;
    /** Send what is marked at once: the page may be about to go. */
    flush(): void;
    #private;
}
export type Badge = import("./api.js").Badge;
export type EventId = import("./api.js").EventId;
export type SystemEvent = import("./api.js").SystemEvent;
export type Filter = import("./list.js").Filter;
export type Failure = import("./marks.js").Failure;
export type Trouble = import("./task.js").Trouble;
export type BellOptions = {
    /**
     * gives the caller's token; asked once for a new one
     * when the service has refused the last
     */
    token: import("./session.js").GiveToken;
    /**
     * where the API is; the page's own origin
     */
    url?: string | undefined;
    /**
     * who this is: tabs of the same user tell each other what is marked
     */
    user?: string | undefined;
    /**
     * how far back to look, default 30
     */
    days?: number | undefined;
    /**
     * ms between refreshes while the page is seen, default 60,000
     */
    every?: number | undefined;
    /**
     * ms to wait for further marks before they are sent, default 100
     */
    delay?: number | undefined;
};
export type BellState = {
    /**
     * null: not known
     */
    badge: Badge | null;
    /**
     * newest first
     */
    events: readonly SystemEvent[];
    /**
     * the list has been answered since its filter was set
     */
    loaded: boolean;
    /**
     * there are older events
     */
    hasMore: boolean;
    /**
     * requests of marks that are not answered yet
     */
    pending: number;
    /**
     * marks that were refused, and are taken back
     */
    failed: readonly Failure[];
    /**
     * what keeps
     * each from being up to date, and when it is tried again
     */
    trouble: {
        marks: Trouble | null;
        badge: Trouble | null;
        list: Trouble | null;
    };
};
