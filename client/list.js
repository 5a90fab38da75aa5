/** The list of events as the service says, newest first: its pages, and what is found on a refresh. */
import { listEvents } from "./api.js";

/** @typedef {import("./api.js").EventId} EventId */
/** @typedef {import("./api.js").SystemEvent} SystemEvent */
/** @typedef {import("./api.js").Filter & {showUnread?: boolean}} Filter */
/** @typedef {import("./session.js").Session} Session */

const PAGE = 20; // events more, each time
const LARGEST = 100; // events in one answer
const REFRESHED = 500; // of a long list, the newest
const REQUESTS = 10; // for one page: a page may be short, even empty

export class List {
  /** @type {SystemEvent[]} */
  events = [];
  /** @type {Filter} */
  filter = {};
  opened = false;
  loaded = false; // answered, since the filter was set
  #session;
  #since;
  /** @type {(Filter & {cursor: string}) | null} where older events begin */
  #older = null;
  /** @type {Map<EventId, boolean> | null} marked while an answer is under way, which does not know */
  #meanwhile = null;
  #abort = new AbortController();

  /**
   * @param {Session} session
   * @param {() => string} since  where the window begins
   */
  constructor(session, since) {
    this.#session = session;
    this.#since = since;
  }

  get hasMore() {
    return this.#older !== null;
  }

  /** @param {Filter} filter  set anew: with the next answer, nothing of the list stays */
  open(filter) {
    this.filter = filter;
    this.opened = true;
    this.loaded = false;
    this.abort();
  }

  /** Call off what is asked for. */
  abort() {
    this.#abort.abort();
    this.#abort = new AbortController();
  }

  clear() {
    this.events = [];
    this.#older = null;
  }

  /**
   * The service has marked these.
   * @param {Iterable<EventId>} ids
   * @param {boolean} unread
   */
  confirm(ids, unread) {
    const marked = new Map([...ids].map((id) => [id, unread]));
    for (const id of marked.keys()) this.#meanwhile?.set(id, unread);
    this.events = patch(this.events, marked);
  }

  /** Ask for the newest events, down to the oldest one shown. */
  async refresh() {
    const unreadOnly = this.filter.showUnread === true;
    const filter = { from_timestamp: this.#since(), ...this.filter };
    const shown = this.loaded ? this.events : [];
    const matching = (/** @type {SystemEvent[]} */ events) =>
      events.filter(({ showUnread }) => showUnread || !unreadOnly).length;
    await this.#ask(async (ask) => {
      /** @type {SystemEvent[]} */
      const listed = [];
      /** @type {string | null} */
      let cursor = null;
      let merged;
      let left = Math.max(PAGE, matching(shown));
      for (let request = 0; left > 0 && listed.length < REFRESHED && request < REQUESTS; request++) {
        const page = await ask({ ...filter, cursor, take: Math.min(LARGEST, left) });
        listed.push(...page.events);
        cursor = page.nextCursor;
        merged = merge(shown, listed, cursor === null, unreadOnly);
        // What has arrived since has taken the place of as many at the end.
        if (merged) left = cursor === null ? 0 : Math.max(PAGE - listed.length, matching(merged.rest));
      }
      const { events, rest } = merged ?? { events: listed, rest: [] };
      this.events = [...events, ...rest];
      if (!rest.length) this.#older = cursor === null ? null : { ...filter, cursor };
      this.loaded = true;
    });
  }

  /** Ask for older events than those shown. */
  async more() {
    await this.#ask(async (ask) => {
      /** @type {SystemEvent[]} */
      const listed = [];
      for (let request = 0; this.#older && !listed.length && request < REQUESTS; request++) {
        const page = await ask({ ...this.#older, take: PAGE });
        listed.push(...page.events);
        this.#older = page.nextCursor === null ? null : { ...this.#older, cursor: page.nextCursor };
      }
      const shown = new Set(this.events.map(({ id }) => id));
      this.events = [...this.events, ...listed.filter(({ id }) => !shown.has(id))];
    });
  }

  /** @param {(ask: (body: Filter & {cursor: string | null, take: number}) => Promise<import("./api.js").Page>) => Promise<void>} work */
  async #ask(work) {
    const { signal } = this.#abort;
    const meanwhile = (this.#meanwhile = new Map());
    try {
      await work(async (body) => {
        const page = await this.#session.call((access) => listEvents(access, body, { signal }));
        signal.throwIfAborted(); // it came in time, but the filter is another one
        return page;
      });
      this.events = patch(this.events, meanwhile);
    } finally {
      this.#meanwhile = null;
    }
  }
}

/** @param {SystemEvent[]} events @param {Map<EventId, boolean>} marked  unread or not, by id */
function patch(events, marked) {
  return events.map((event) => {
    const showUnread = marked.get(event.id) ?? event.showUnread;
    return showUnread === event.showUnread ? event : { ...event, showUnread };
  });
}

/**
 * Put what is listed now into what is shown: in order, no event twice. Events that are not listed any
 * more, though in the range that was listed, have gone; or, where only unread ones are listed, they
 * are read, and stay in their place.
 *
 * @param {SystemEvent[]} shown  newest first
 * @param {SystemEvent[]} listed  the newest that there are now
 * @param {boolean} complete  there is none older than those listed
 * @param {boolean} unreadOnly
 * @returns {{events: SystemEvent[], rest: SystemEvent[]} | null} rest: the shown ones older than
 *   those listed; null where there may be others between the two
 */
export function merge(shown, listed, complete, unreadOnly) {
  const found = new Set(listed.map(({ id }) => id));
  const places = new Map(shown.map(({ id }, index) => [id, index]));
  const missing = (/** @type {SystemEvent[]} */ range) =>
    !unreadOnly ? [] : range.filter(({ id }) => !found.has(id)).map((event) => ({ ...event, showUnread: false }));
  const events = [];
  let next = 0; // in shown
  for (const event of listed) {
    // Times are cut to milliseconds, so the order of what is in both is that of the list.
    const known = places.get(event.id);
    const place = known ?? shown.findLastIndex((old) => old.timestamp > event.timestamp) + 1;
    if (place > next) events.push(...missing(shown.slice(next, place)));
    next = Math.max(next, known === undefined ? place : place + 1);
    events.push(event);
  }
  if (complete) return { events: [...events, ...missing(shown.slice(next))], rest: [] };
  if (listed.length && shown.length && next === 0) return null;
  return { events, rest: shown.slice(next).filter(({ id }) => !found.has(id)) };
}
