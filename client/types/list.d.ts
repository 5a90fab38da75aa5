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
export function merge(shown: SystemEvent[], listed: SystemEvent[], complete: boolean, unreadOnly: boolean): {
    events: SystemEvent[];
    rest: SystemEvent[];
} | null;
export class List {
    /**
     * @param {Session} session
     * @param {() => string} since  where the window begins
     */
    constructor(session: Session, since: () => string);
    /** @type {SystemEvent[]} */
    events: SystemEvent[];
    /** @type {Filter} */
    filter: Filter;
    opened: boolean;
    loaded: boolean;
    get hasMore(): boolean;
    /** @param {Filter} filter  set anew: with the next answer, nothing of the list stays */
    open(filter: Filter): void;
    /** Call off what is asked for. */
    abort(): void;
    clear(): void;
    /**
     * The service has marked these.
     * @param {Iterable<EventId>} ids
     * @param {boolean} unread
     */
    confirm(ids: Iterable<EventId>, unread: boolean): void;
    /** Ask for the newest events, down to the oldest one shown. */
    refresh(): Promise<void>;
    /** Ask for older events than those shown. */
    more(): Promise<void>;
    #private;
}
export type EventId = import("./api.js").EventId;
export type SystemEvent = import("./api.js").SystemEvent;
export type Filter = import("./api.js").Filter & {
    showUnread?: boolean;
};
export type Session = import("./session.js").Session;
