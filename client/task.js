/**
 * One piece of work at a time: asked for while it runs, it runs once more; after a failure that can
 * pass by itself it waits, as long as the service says or longer each time, and then runs again.
 */

/** @typedef {{error: unknown, retryAt: number | null}} Trouble  retryAt: ms since 1970; null: not by itself */

const PASSING = [0, 408, 429, 502, 503, 504]; // statuses that another attempt may not meet again
const WAIT = 5; // seconds, where a 503 does not say
const LONGEST = 60; // seconds between attempts that get no answer

/** @param {any} error @returns {boolean} */
export const canPass = (error) => PASSING.includes(error?.status);

export class Task {
  /** @type {Trouble | null} what the last run met */
  trouble = null;
  #work;
  #changed;
  #tries = 0;
  #until = 0; // not before, unless a person asks
  #due = Infinity;
  #wanted = false;
  #stopped = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {Promise<void> | null} */
  #running = null;

  /**
   * @param {() => Promise<void>} work
   * @param {() => void} changed  called when the trouble has changed
   */
  constructor(work, changed) {
    this.#work = work;
    this.#changed = changed;
  }

  get running() {
    return this.#running !== null;
  }

  /**
   * Run now, however long it was to wait.
   * @returns {Promise<void>} when all that was asked for has ended, well or not
   */
  run() {
    this.#clear();
    this.#until = 0;
    this.#wanted = true;
    this.#running ??= this.#go();
    return this.#running;
  }

  /**
   * Run in `delay` ms, or when the wait that a failure asked for is over.
   * @param {number} [delay]
   */
  soon(delay = 0) {
    if (this.#stopped) return;
    const now = Date.now();
    const due = Math.max(now + delay, this.#until);
    if (this.#running && this.#until <= now) this.#wanted = true;
    else if (due < this.#due) {
      this.#clear();
      this.#due = due;
      this.#timer = setTimeout(() => {
        this.run();
      }, due - now);
    }
  }

  /** The line may be back: where no answer was the trouble, do not wait; what a 503 asked for stays. */
  wake() {
    if (/** @type {any} */ (this.trouble?.error)?.status === 0) this.#until = 0;
    if (!this.#running) this.soon();
  }

  start() {
    this.#stopped = false;
  }

  /** What runs ends, and nothing more begins by itself. */
  stop() {
    this.#stopped = true;
    this.#clear();
    this.#wanted = false;
    this.#until = 0;
  }

  #clear() {
    clearTimeout(this.#timer);
    this.#due = Infinity;
  }

  async #go() {
    while (this.#wanted) {
      this.#wanted = false;
      try {
        await this.#work();
        this.#tries = 0;
        this.trouble = null;
      } catch (error) {
        this.#fail(/** @type {any} */ (error));
      }
      this.#changed();
    }
    this.#running = null;
  }

  /** @param {any} error */
  #fail(error) {
    if (error.name === "AbortError") return; // called off by us
    const wait = canPass(error) ? this.#wait(error) : null;
    this.trouble = { error, retryAt: wait && Date.now() + wait };
    if (wait === null) return;
    this.#until = Date.now() + wait;
    this.#wanted = false;
    this.soon();
  }

  /** @param {{status: number, retryAfter: number | null}} error @returns {number} ms */
  #wait({ status, retryAfter }) {
    const tries = this.#tries++;
    // Never less than was asked for; not all at the same moment.
    if (status === 503 || retryAfter) return (retryAfter ?? WAIT) * 1000 * (1 + Math.random() / 4);
    return Math.min(LONGEST, 2 ** tries) * 1000 * (0.5 + Math.random() / 2);
  }
}
