export class Marks {
    /** @param {import("./session.js").Session} session */
    constructor(session: import("./session.js").Session);
    /** @type {Batch[]} the oldest first */
    queue: Batch[];
    /** @type {Failure[]} */
    failed: Failure[];
    /**
     * Add marks, to the requests that are not sent yet where possible. The last one of an event wins.
     * @param {EventId[]} ids
     * @param {"read" | "unread"} action
     */
    add(ids: EventId[], action: "read" | "unread"): void;
    /**
     * Add "mark all as read".
     * @param {AllFilter} filter
     * @param {EventId[]} ids  the shown ones among them
     */
    addAll(filter: AllFilter, ids: EventId[]): void;
    /** Add all that failed, again. */
    addFailed(): void;
    /**
     * Events as they will be when the queue is done.
     * @param {SystemEvent[]} events  as the service says
     */
    over(events: SystemEvent[]): {
        showUnread: boolean;
        id: import("./api.js").EventId;
        /**
         * ISO 8601, UTC
         */
        timestamp: string;
        contextId: string;
        /**
         * "bucket", ...: the word for the filter's number
         */
        context: string;
        /**
         * "created", "updated" or "deleted"
         */
        event: string;
        orgId: string;
        userId: string;
        userName: string;
        userEmail: string;
        workspaceId: string | null;
        /**
         * details, as JSON
         */
        jsonData: string | null;
    }[];
    /** Send all of it at once. */
    flush(): void;
    /**
     * Send the queue, one request after the other, until it is empty.
     * @param {(batch: Batch) => void} done  the service has marked them
     * @param {() => void} refused  it has not, and will not: see `failed`
     * @returns {Promise<void>} rejects where it makes sense to send the rest later
     */
    send(done: (batch: Batch) => void, refused: () => void): Promise<void>;
    #private;
}
export type EventId = import("./api.js").EventId;
export type SystemEvent = import("./api.js").SystemEvent;
export type AllFilter = import("./api.js").Filter & {
    upTo?: EventId;
};
/**
 * one request
 */
export type Batch = {
    action: "read" | "unread" | "all";
    /**
     * of the events that it changes; for "all", of those that were shown
     */
    ids: Set<EventId>;
    /**
     * for "all": which
     */
    filter?: AllFilter | undefined;
    /**
     * the answer to come
     */
    sent: Promise<unknown> | null;
    /**
     * sent while an older request on the same events was under way
     */
    early: boolean;
};
/**
 * marks that were refused
 */
export type Failure = {
    action: "read" | "unread" | "all";
    ids: EventId[];
    filter?: AllFilter | undefined;
    /**
     * an ApiError, unless the page's own `token` failed
     */
    error: unknown;
};
