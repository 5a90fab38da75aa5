/**
 * A bell without a face: its badge and its list, right on slow lines and in several tabs. The page
 * shows `state` and calls the methods; it goes with any framework (`subscribe` and `state` are what
 * React's useSyncExternalStore asks for), and runs in Node.
 *
 * - What the service says is true. What a person marks is applied over it until the service has
 *   answered, and taken back where it refuses.
 * - The badge is what the service counted last; after a mark it is asked again.
 * - No answer, or a 503: marks are kept, and sent again. Any other refusal is told in `failed`.
 */
import { countUnread } from "./api.js";
import { List } from "./list.js";
import { Marks } from "./marks.js";
import { Session } from "./session.js";
import { Task, canPass } from "./task.js";

/** @typedef {import("./api.js").Badge} Badge */
/** @typedef {import("./api.js").EventId} EventId */
/** @typedef {import("./api.js").SystemEvent} SystemEvent */
/** @typedef {import("./list.js").Filter} Filter */
/** @typedef {import("./marks.js").Failure} Failure */
/** @typedef {import("./task.js").Trouble} Trouble */

/**
 * @typedef {object} BellOptions
 * @property {import("./session.js").GiveToken} token  gives the caller's token; asked once for a new one
 *   when the service has refused the last
 * @property {string} [url]  where the API is; the page's own origin
 * @property {string} [user]  who this is: tabs of the same user tell each other what is marked
 * @property {number} [days]  how far back to look, default 30
 * @property {number} [every]  ms between refreshes while the page is seen, default 60,000
 * @property {number} [delay]  ms to wait for further marks before they are sent, default 100
 *
 * @typedef {object} BellState
 * @property {Badge | null} badge  null: not known
 * @property {readonly SystemEvent[]} events  newest first
 * @property {boolean} loaded  the list has been answered since its filter was set
 * @property {boolean} hasMore  there are older events
 * @property {number} pending  requests of marks that are not answered yet
 * @property {readonly Failure[]} failed  marks that were refused, and are taken back
 * @property {{marks: Trouble | null, badge: Trouble | null, list: Trouble | null}} trouble  what keeps
 *   each from being up to date, and when it is tried again
 */

const SOON = 1000; // ms until the marks of a page that was left have arrived

/** ms, comparable between tabs, and never set back */
const moment = () => performance.timeOrigin + performance.now();
const hidden = () => globalThis.document?.hidden ?? false;

export class Bell {
  #options;
  #session;
  #list;
  #marks;
  /** @type {(Badge & {asked: number}) | null} */
  #badge = null;
  #wantsMore = false;

  #writer = new Task(() => this.#write(), () => this.#changed());
  #counter = new Task(() => this.#count(), () => this.#changed());
  #lister = new Task(() => this.#read(), () => this.#changed());

  /** @type {BellState | null} */
  #state = null;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  #telling = false;
  /** @type {AbortController | null} from start to close */
  #life = null;
  /** @type {BroadcastChannel | null} */
  #channel = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {BellOptions} options */
  constructor(options) {
    this.#options = { url: "", days: 30, every: 60_000, delay: 100, ...options };
    this.#session = new Session(this.#options.url, this.#options.token);
    this.#list = new List(this.#session, () => this.#window().from_timestamp);
    this.#marks = new Marks(this.#session);
  }

  /**
   * Begin: ask for the badge, now and from time to time, and listen to other tabs.
   * @returns {() => void} the end
   */
  start() {
    if (this.#life) return () => this.close();
    this.#life = new AbortController();
    const { signal } = this.#life;
    const { url, user } = this.#options;
    if (user !== undefined && globalThis.BroadcastChannel) {
      this.#channel = new BroadcastChannel(`systemevent-read ${url} ${user}`);
      this.#channel.onmessage = ({ data }) => this.#hear(data);
    }
    const wake = () => this.#wake();
    const turn = () => (hidden() ? this.flush() : wake());
    globalThis.document?.addEventListener("visibilitychange", turn, { signal });
    globalThis.addEventListener?.("pagehide", () => this.flush(), { signal });
    globalThis.addEventListener?.("focus", wake, { signal });
    globalThis.addEventListener?.("online", wake, { signal });
    for (const task of [this.#writer, this.#counter, this.#lister]) task.start();
    if (this.#marks.queue.length) this.#writer.soon(); // left from before it was closed
    this.refresh();
    this.#poll();
    return () => this.close();
  }

  /** End: what is marked is still sent; what is asked for is called off. */
  close() {
    this.flush();
    for (const task of [this.#writer, this.#counter, this.#lister]) task.stop();
    clearTimeout(this.#timer);
    this.#life?.abort();
    this.#life = null;
    this.#list.abort();
    this.#channel?.close();
    this.#channel = null;
  }

  /** @returns {BellState} the same object until something changes */
  get state() {
    this.#state ??= Object.freeze({
      badge: this.#badge && { count: this.#badge.count, more: this.#badge.more },
      events: Object.freeze(this.#marks.over(this.#list.events)),
      loaded: this.#list.loaded,
      hasMore: this.#list.hasMore,
      pending: this.#marks.queue.length,
      failed: Object.freeze([...this.#marks.failed]),
      trouble: {
        marks: this.#marks.queue.length ? this.#writer.trouble : null,
        badge: this.#counter.trouble,
        list: this.#lister.trouble,
      },
    });
    return this.#state;
  }

  /**
   * @param {() => void} listener  called after a change
   * @returns {() => void} the end of it
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Ask for the badge now, and for the list where it is open. */
  async refresh() {
    await Promise.all([this.#counter.run(), this.#list.opened && this.#lister.run()]);
  }

  /**
   * Show a list, or set its filter anew.
   * @param {Filter} [filter]
   */
  async open(filter = {}) {
    this.#list.open(filter);
    this.#wantsMore = false;
    this.#changed();
    await this.#lister.run();
  }

  /** Show older events too. */
  async more() {
    this.#wantsMore = this.#list.hasMore;
    if (this.#wantsMore) await this.#lister.run();
  }

  /** @param {EventId | EventId[]} ids */
  markRead(ids) {
    this.#mark(() => this.#marks.add([ids].flat(), "read"));
  }

  /** @param {EventId | EventId[]} ids */
  markUnread(ids) {
    this.#mark(() => this.#marks.add([ids].flat(), "unread"));
  }

  /** Mark all that the list's filter matches: the newest event shown, and the older ones, shown or not. */
  markAllRead() {
    const { events, filter } = this.#list;
    const [newest] = events;
    if (!newest) return;
    const { showUnread, ...which } = filter;
    const shown = events.map(({ id }) => id);
    this.#mark(() => this.#marks.addAll({ ...this.#window(), ...which, upTo: newest.id }, shown));
  }

  /** Do again what failed, all of it, and what waits. */
  async retry() {
    this.#mark(() => this.#marks.addFailed());
    await Promise.all([this.#marks.queue.length && this.#writer.run(), this.refresh()]);
  }

  /** Forget what failed. */
  dismiss() {
    this.#marks.failed = [];
    this.#changed();
  }

  /** Send what is marked at once: the page may be about to go. */
  flush() {
    if (!this.#marks.queue.length) return;
    this.#marks.flush();
    this.#writer.run();
    this.#channel?.postMessage({ left: true });
  }

  /** @param {() => void} add */
  #mark(add) {
    add();
    if (this.#marks.queue.length) this.#writer.soon(this.#options.delay);
    this.#changed();
  }

  async #write() {
    let marked = false;
    try {
      await this.#marks.send(({ ids, action }) => {
        const at = this.#session.markedAt;
        const message = { marked: [...ids], unread: action === "unread", all: action === "all", at };
        this.#channel?.postMessage(message);
        this.#confirm(message);
        marked = true;
      }, () => this.#changed());
    } finally {
      if (marked) this.#counter.soon();
    }
  }

  /**
   * The service has marked these, for this tab or another.
   * @param {{marked: EventId[], unread: boolean, all: boolean}} message
   */
  #confirm({ marked, unread, all }) {
    this.#list.confirm(marked, unread);
    if (all && this.#list.opened) this.#lister.soon(); // there may be more of them in the list by now
    this.#changed();
  }

  async #count() {
    const asked = moment();
    const options = { signal: this.#life?.signal };
    const badge = await this.#session.call((access) => countUnread(access, this.#window(), options));
    this.#setBadge({ ...badge, asked });
    this.#channel?.postMessage({ badge: { ...badge, asked } });
  }

  /** @param {Badge & {asked: number}} badge */
  #setBadge(badge) {
    if (this.#badge && this.#badge.asked > badge.asked) return; // another tab has asked later
    this.#badge = badge;
    this.#changed();
  }

  async #read() {
    const more = this.#wantsMore && this.#list.loaded;
    this.#wantsMore = false;
    try {
      if (more) await this.#list.more();
      else if (this.#list.opened) await this.#list.refresh();
    } catch (error) {
      if (/** @type {any} */ (error).status === 403) {
        this.#list.clear();
        this.#badge = null;
      }
      if (more && canPass(error)) this.#wantsMore = true;
      throw error;
    }
  }

  /** @param {any} message  of another tab */
  #hear(message) {
    this.#session.note(message.at);
    if (message.marked) this.#confirm(message);
    if (message.badge) this.#setBadge(message.badge);
    if (message.left) for (const task of this.#readers()) task.soon(SOON);
  }

  #readers() {
    return this.#list.opened ? [this.#counter, this.#lister] : [this.#counter];
  }

  /** The page is seen again, or the line may be back. */
  #wake() {
    if (hidden()) return;
    if (this.#marks.queue.length) this.#writer.wake();
    for (const task of this.#readers()) task.wake();
    this.#poll();
  }

  /** Refresh from time to time; in a hidden tab, not at all. */
  #poll() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (hidden()) return; // until it is seen again
      for (const task of this.#readers()) task.soon();
      this.#poll();
    }, this.#options.every);
  }

  /** The window of the badge and the list: without one, the service looks at the last 24 hours. */
  #window() {
    return { from_timestamp: new Date(Date.now() - this.#options.days * 86_400_000).toISOString() };
  }

  /** Tell the listeners, once for changes that come together. */
  #changed() {
    this.#state = null;
    if (this.#telling) return;
    this.#telling = true;
    queueMicrotask(() => {
      this.#telling = false;
      for (const listener of this.#listeners) queueMicrotask(listener); // a fault in one is its own
    });
  }
}
