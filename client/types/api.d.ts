/**
 * List events, newest first. With `cursor` (null for the first page, then the `nextCursor` of the
 * answer before) as pages that do not shift; without, as `skip` and `take` say.
 *
 * @overload
 * @param {Access} access
 * @param {Filter & ListFilter & {cursor: string | null}} filter
 * @param {Options} [options]
 * @returns {Promise<Page>}
 *
 * @overload
 * @param {Access} access
 * @param {Filter & ListFilter & {skip?: number}} [filter]
 * @param {Options} [options]
 * @returns {Promise<List>}
 *
 * @param {Access} access
 * @param {object} [filter]
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export function listEvents(access: Access, filter: Filter & ListFilter & {
    cursor: string | null;
}, options?: Options | undefined): Promise<Page>;
/**
 * List events, newest first. With `cursor` (null for the first page, then the `nextCursor` of the
 * answer before) as pages that do not shift; without, as `skip` and `take` say.
 *
 * @overload
 * @param {Access} access
 * @param {Filter & ListFilter & {cursor: string | null}} filter
 * @param {Options} [options]
 * @returns {Promise<Page>}
 *
 * @overload
 * @param {Access} access
 * @param {Filter & ListFilter & {skip?: number}} [filter]
 * @param {Options} [options]
 * @returns {Promise<List>}
 *
 * @param {Access} access
 * @param {object} [filter]
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export function listEvents(access: Access, filter?: (Filter & ListFilter & {
    skip?: number;
}) | undefined, options?: Options | undefined): Promise<List>;
/**
 * Count what the caller has not read: the badge.
 * @param {Access} access
 * @param {Filter} [filter]
 * @param {Options} [options]
 * @returns {Promise<Badge>}
 */
export function countUnread(access: Access, filter?: Filter, options?: Options): Promise<Badge>;
/**
 * Mark events as read. Safe to repeat; ids that are not of the caller's organization are skipped.
 * @param {Access} access
 * @param {EventId | EventId[]} ids  none: resolves without a request
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markRead(access: Access, ids: EventId | EventId[], options?: Options): Promise<{
    success: true;
}>;
/**
 * Mark events as unread. Safe to repeat.
 * @param {Access} access
 * @param {EventId | EventId[]} ids  none: resolves without a request
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markUnread(access: Access, ids: EventId | EventId[], options?: Options): Promise<{
    success: true;
}>;
/**
 * Mark all events that match as read. Safe to repeat; after a 503, a repeat goes on where it stopped.
 * @param {Access} access
 * @param {Filter & {upTo?: EventId}} [filter]  upTo: only this event and older ones, so that what has
 *   arrived since stays unread
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markAllRead(access: Access, filter?: Filter & {
    upTo?: EventId;
}, options?: Options): Promise<{
    success: true;
}>;
/**
 * The later of two moments, if any.
 * @param {string | undefined} one
 * @param {string | undefined} other
 */
export function later(one: string | undefined, other: string | undefined): string | undefined;
/**
 * Fetch JSON, or throw an ApiError.
 * @param {string} url
 * @param {RequestInit} [init]
 * @param {(headers: Headers) => void} [hear]  is given those of a good answer
 * @returns {Promise<any>}
 */
export function request(url: string, { signal, ...init }?: RequestInit, hear?: (headers: Headers) => void): Promise<any>;
/** A call that failed. */
export class ApiError extends Error {
    /**
     * @param {string} message  the server's, where it sent one
     * @param {number} status  the HTTP status; 0 where there was no answer
     * @param {Headers | null} [headers]  of the answer
     * @param {ErrorOptions} [options]
     */
    constructor(message: string, status: number, headers?: Headers | null, options?: ErrorOptions);
    status: number;
    /** @type {number | null} seconds to wait, from a 503 */
    retryAfter: number | null;
    /** @type {string | null} under which the service has logged it */
    requestId: string | null;
}
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type EventId = number | bigint;
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type Access = {
    /**
     * the caller's bearer token
     */
    token: string;
    /**
     * where the API is, such as "https://api.example.com"; the page's own origin
     */
    url?: string | undefined;
    /**
     * set by the calls: when the caller last marked, which lists and counts then show,
     * whichever instance answers; for as long as this object is used
     */
    markedAt?: string | undefined;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type Options = {
    /**
     * ends the call; it then rejects with the signal's reason
     */
    signal?: AbortSignal | undefined;
    /**
     * let the request outlive the page; its body is 64 KiB at most then
     */
    keepalive?: boolean | undefined;
};
/**
 * which events; without timestamps, those of the last 24 hours
 */
export type Filter = {
    /**
     * ISO 8601, inclusive; so is to_timestamp
     */
    from_timestamp?: string | undefined;
    to_timestamp?: string | undefined;
    /**
     * what it happened to
     */
    contextId?: string | undefined;
    /**
     * 0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey,
     * 7 usersettings, 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, 13 conversation
     */
    context?: number | undefined;
    /**
     * 0 created, 1 updated, 2 deleted
     */
    event?: number | undefined;
    /**
     * who did it
     */
    userId?: string | undefined;
    /**
     * where
     */
    workspaceId?: string | undefined;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type ListFilter = {
    /**
     * true: only what the caller has not read
     */
    showUnread?: boolean | undefined;
    /**
     * 1 to 100, default 20
     */
    take?: number | undefined;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type SystemEvent = {
    id: EventId;
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
    /**
     * the caller has not read it
     */
    showUnread: boolean;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type List = {
    events: SystemEvent[];
    total: number;
    skip: number;
    take: number;
    /**
     * the window holds older events that were not looked at;
     */
    more?: true | undefined;
    /**
     * go on with this as to_timestamp
     */
    until?: string | undefined;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type Page = {
    /**
     * may be few, or none, where there is a next page all the same
     */
    events: SystemEvent[];
    take: number;
    /**
     * null: this was the last page
     */
    nextCursor: string | null;
};
/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 */
export type Badge = {
    count: number;
    /**
     * older events were not looked at: show the count with a plus
     */
    more: boolean;
};
