/**
 * What a person has marked and the service has not confirmed, in order, merged into few requests.
 */
import { markAllRead, markRead, markUnread } from "./api.js";
import { canPass } from "./task.js";

/** @typedef {import("./api.js").EventId} EventId */
/** @typedef {import("./api.js").SystemEvent} SystemEvent */
/** @typedef {import("./api.js").Filter & {upTo?: EventId}} AllFilter */

/**
 * @typedef {object} Batch  one request
 * @property {"read" | "unread" | "all"} action
 * @property {Set<EventId>} ids  of the events that it changes; for "all", of those that were shown
 * @property {AllFilter} [filter]  for "all": which
 * @property {Promise<unknown> | null} sent  the answer to come
 * @property {boolean} early  sent while an older request on the same events was under way
 *
 * @typedef {object} Failure  marks that were refused
 * @property {"read" | "unread" | "all"} action
 * @property {EventId[]} ids
 * @property {AllFilter} [filter]
 * @property {unknown} error  an ApiError, unless the page's own `token` failed
 */

const MOST = 1000; // ids in a request: 20 KB, of the 64 that a page may leave behind

export class Marks {
  /** @type {Batch[]} the oldest first */
  queue = [];
  /** @type {Failure[]} */
  failed = [];
  #session;

  /** @param {import("./session.js").Session} session */
  constructor(session) {
    this.#session = session;
  }

  /**
   * Add marks, to the requests that are not sent yet where possible. The last one of an event wins.
   * @param {EventId[]} ids
   * @param {"read" | "unread"} action
   */
  add(ids, action) {
    this.#forget(ids);
    const from = this.queue.findLastIndex((batch) => batch.sent || batch.action === "all") + 1;
    for (const id of new Set(ids)) {
      const unsent = this.queue.slice(from);
      for (const batch of unsent) batch.ids.delete(id);
      const open = unsent.find((batch) => batch.action === action && batch.ids.size < MOST);
      if (open) open.ids.add(id);
      else this.queue.push({ action, ids: new Set([id]), sent: null, early: false });
    }
    this.queue = this.queue.filter((batch) => batch.ids.size || batch.action === "all");
  }

  /**
   * Add "mark all as read".
   * @param {AllFilter} filter
   * @param {EventId[]} ids  the shown ones among them
   */
  addAll(filter, ids) {
    this.#forget(ids);
    this.failed = this.failed.filter(({ action }) => action !== "all");
    this.queue.push({ action: "all", filter, ids: new Set(ids), sent: null, early: false });
  }

  /** Add all that failed, again. */
  addFailed() {
    for (const { action, ids, filter } of this.failed.splice(0)) {
      if (action === "all") this.addAll(filter ?? {}, ids);
      else this.add(ids, action);
    }
  }

  /**
   * Events as they will be when the queue is done.
   * @param {SystemEvent[]} events  as the service says
   */
  over(events) {
    /** @type {Map<EventId, boolean>} */
    const marked = new Map();
    for (const { ids, action } of this.queue) for (const id of ids) marked.set(id, action === "unread");
    return events.map((event) => ({ ...event, showUnread: marked.get(event.id) ?? event.showUnread }));
  }

  /** Send all of it at once. */
  flush() {
    for (const batch of this.queue) this.#start(batch);
  }

  /**
   * Send the queue, one request after the other, until it is empty.
   * @param {(batch: Batch) => void} done  the service has marked them
   * @param {() => void} refused  it has not, and will not: see `failed`
   * @returns {Promise<void>} rejects where it makes sense to send the rest later
   */
  async send(done, refused) {
    for (let batch; (batch = this.queue[0]); ) {
      let error = null;
      try {
        await this.#start(batch);
      } catch (caught) {
        error = caught;
      }
      const { early } = batch;
      Object.assign(batch, { sent: null, early: false });
      if (error && canPass(error)) throw error;
      if (error === null && early) continue; // the older one may have come in later: this is the last word
      this.queue.shift();
      if (error === null) done(batch);
      else this.#fail(batch, error);
      if (error !== null) refused();
    }
  }

  /** @param {Batch} batch */
  #start(batch) {
    if (!batch.sent) {
      const older = this.queue.slice(0, this.queue.indexOf(batch));
      batch.early = older.some((other) => clash(other, batch));
      batch.sent = this.#session.call((access) => post(access, batch));
      batch.sent.catch(() => {}); // told when its turn comes
    }
    return batch.sent;
  }

  /** Take back. Where a newer mark of the same event waits, that one counts. @param {Batch} batch @param {unknown} error */
  #fail({ action, ids, filter }, error) {
    const newer = new Set(this.queue.flatMap((batch) => [...batch.ids]));
    const left = [...ids].filter((id) => !newer.has(id));
    if (left.length || action === "all") this.failed.push({ action, ids: left, filter, error });
  }

  /** What failed on these before is past: they are marked anew. @param {EventId[]} ids */
  #forget(ids) {
    const past = new Set(ids);
    this.failed = this.failed
      .map((failure) => ({ ...failure, ids: failure.ids.filter((id) => !past.has(id)) }))
      .filter(({ action, ids: left }) => action === "all" || left.length);
  }
}

/** @param {Batch} one @param {Batch} other @returns {boolean} the order of the two matters */
function clash(one, other) {
  if (one.action === other.action) return false;
  if (one.action === "all" || other.action === "all") return true;
  return [...one.ids].some((id) => other.ids.has(id));
}

/** @param {import("./api.js").Access} access @param {Batch} batch @returns {Promise<unknown>} */
function post(access, { action, ids, filter }) {
  const options = { keepalive: true };
  if (action === "all") return markAllRead(access, filter, options);
  const all = [...ids];
  const [one] = all;
  const send = action === "read" ? markRead : markUnread;
  return send(access, all.length === 1 && one !== undefined ? one : all, options);
}
