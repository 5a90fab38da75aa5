/**
 * The five calls of a notification bell, each one request. No dependencies; for browsers and Node.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint.
 *
 * @typedef {number | bigint} EventId
 *
 * @typedef {object} Access
 * @property {string} token  the caller's bearer token
 * @property {string} [url]  where the API is, such as "https://api.example.com"; the page's own origin
 * @property {string} [markedAt]  set by the calls: when the caller last marked, which lists and counts then show,
 *   whichever instance answers; for as long as this object is used
 *
 * @typedef {object} Options
 * @property {AbortSignal} [signal]  ends the call; it then rejects with the signal's reason
 * @property {boolean} [keepalive]  let the request outlive the page; its body is 64 KiB at most then
 *
 * @typedef {object} Filter  which events; without timestamps, those of the last 24 hours
 * @property {string} [from_timestamp]  ISO 8601, inclusive; so is to_timestamp
 * @property {string} [to_timestamp]
 * @property {string} [contextId]  what it happened to
 * @property {number} [context]  0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey,
 *   7 usersettings, 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, 13 conversation
 * @property {number} [event]  0 created, 1 updated, 2 deleted
 * @property {string} [userId]  who did it
 * @property {string} [workspaceId]  where
 *
 * @typedef {object} ListFilter
 * @property {boolean} [showUnread]  true: only what the caller has not read
 * @property {number} [take]  1 to 100, default 20
 *
 * @typedef {object} SystemEvent
 * @property {EventId} id
 * @property {string} timestamp  ISO 8601, UTC
 * @property {string} contextId
 * @property {string} context  "bucket", ...: the word for the filter's number
 * @property {string} event  "created", "updated" or "deleted"
 * @property {string} orgId
 * @property {string} userId
 * @property {string} userName
 * @property {string} userEmail
 * @property {string | null} workspaceId
 * @property {string | null} jsonData  details, as JSON
 * @property {boolean} showUnread  the caller has not read it
 *
 * @typedef {object} List
 * @property {SystemEvent[]} events
 * @property {number} total
 * @property {number} skip
 * @property {number} take
 * @property {true} [more]  the window holds older events that were not looked at;
 * @property {string} [until]  go on with this as to_timestamp
 *
 * @typedef {object} Page
 * @property {SystemEvent[]} events  may be few, or none, where there is a next page all the same
 * @property {number} take
 * @property {string | null} nextCursor  null: this was the last page
 *
 * @typedef {object} Badge
 * @property {number} count
 * @property {boolean} more  older events were not looked at: show the count with a plus
 */

const MARKED_AT = "X-Marked-At";
const TIMEOUT = 15_000; // ms; the service itself gives up after 10 s

/** A call that failed. */
export class ApiError extends Error {
  /**
   * @param {string} message  the server's, where it sent one
   * @param {number} status  the HTTP status; 0 where there was no answer
   * @param {Headers | null} [headers]  of the answer
   * @param {ErrorOptions} [options]
   */
  constructor(message, status, headers = null, options = undefined) {
    super(message, options);
    this.name = "ApiError";
    this.status = status;
    /** @type {number | null} seconds to wait, from a 503 */
    this.retryAfter = Number(headers?.get("Retry-After")) || null;
    /** @type {string | null} under which the service has logged it */
    this.requestId = headers?.get("X-Request-ID") ?? null;
  }
}

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
export function listEvents(access, filter = {}, options) {
  return call(access, "POST", "/systemevent", filter, options);
}

/**
 * Count what the caller has not read: the badge.
 * @param {Access} access
 * @param {Filter} [filter]
 * @param {Options} [options]
 * @returns {Promise<Badge>}
 */
export function countUnread(access, filter = {}, options) {
  return call(access, "POST", "/systemevent/count", filter, options);
}

/**
 * Mark events as read. Safe to repeat; ids that are not of the caller's organization are skipped.
 * @param {Access} access
 * @param {EventId | EventId[]} ids  none: resolves without a request
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markRead(access, ids, options) {
  return mark(access, "POST", ids, options);
}

/**
 * Mark events as unread. Safe to repeat.
 * @param {Access} access
 * @param {EventId | EventId[]} ids  none: resolves without a request
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markUnread(access, ids, options) {
  return mark(access, "DELETE", ids, options);
}

/**
 * Mark all events that match as read. Safe to repeat; after a 503, a repeat goes on where it stopped.
 * @param {Access} access
 * @param {Filter & {upTo?: EventId}} [filter]  upTo: only this event and older ones, so that what has
 *   arrived since stays unread
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
export function markAllRead(access, filter = {}, options) {
  return call(access, "POST", "/systemevent/read/all", filter, options);
}

/**
 * @param {Access} access
 * @param {string} method
 * @param {EventId | EventId[]} ids
 * @param {Options} [options]
 * @returns {Promise<{success: true}>}
 */
async function mark(access, method, ids, options) {
  const wrong = [ids].flat().find((id) => typeof id !== "bigint" && !Number.isSafeInteger(id));
  if (wrong !== undefined) throw new TypeError(`not the id of an event: ${wrong}`);
  if (!Array.isArray(ids)) return call(access, method, "/systemevent/read", { id: ids }, options);
  if (ids.length) return call(access, method, "/systemevent/read", { ids }, options);
  options?.signal?.throwIfAborted();
  return { success: true };
}

/**
 * @param {Access} access
 * @param {string} method
 * @param {string} path
 * @param {object} content
 * @param {Options} [options]
 */
function call(access, method, path, content, options) {
  const { token, url = "", markedAt } = access;
  /** @type {Record<string, string>} */
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  if (markedAt) headers[MARKED_AT] = markedAt;
  const init = { ...options, method, headers, body: encode(content) };
  return request(url.replace(/\/+$/, "") + path, init, (answered) => {
    const moment = later(access.markedAt, answered.get(MARKED_AT) ?? undefined);
    if (moment !== access.markedAt && Object.isExtensible(access)) access.markedAt = moment;
  });
}

/**
 * The later of two moments, if any.
 * @param {string | undefined} one
 * @param {string | undefined} other
 */
export function later(one, other) {
  return Number(other ?? 0) > Number(one ?? 0) ? other : one;
}

/**
 * Fetch JSON, or throw an ApiError.
 * @param {string} url
 * @param {RequestInit} [init]
 * @param {(headers: Headers) => void} [hear]  is given those of a good answer
 * @returns {Promise<any>}
 */
export async function request(url, { signal, ...init } = {}, hear = () => {}) {
  const timeout = AbortSignal.timeout(TIMEOUT);
  let response, text;
  try {
    response = await fetch(url, { ...init, signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
    text = await response.text();
  } catch (cause) {
    signal?.throwIfAborted();
    throw new ApiError("no answer from the service", 0, null, { cause });
  }
  const { ok, status, headers } = response;
  let answer;
  try {
    if (ok || headers.get("Content-Type")?.includes("application/json")) answer = decode(text);
  } catch (cause) {
    throw new ApiError("the answer is not valid JSON", status, headers, { cause });
  }
  if (ok) hear(headers);
  if (ok) return answer;
  throw new ApiError(answer?.error ?? `HTTP status ${status}`, status, headers);
}

/**
 * JSON of an object, with bigints as numbers.
 * @param {object} content
 * @returns {string}
 */
function encode(content) {
  const fields = Object.entries(content).filter(([, value]) => value !== undefined);
  return `{${fields.map(([key, value]) => `${JSON.stringify(key)}:${json(value)}`).join()}}`;
}

/** @param {unknown} value @returns {string} */
function json(value) {
  if (Array.isArray(value)) return `[${value.map(json).join()}]`;
  return typeof value === "bigint" ? String(value) : JSON.stringify(value);
}

/**
 * Parse JSON, and keep an id above 2^53 what it is: JSON.parse alone would round it. A quote inside
 * a string is escaped, so the pattern finds keys only.
 * @param {string} text
 */
function decode(text) {
  const exact = text.replace(/(?<!\\)"id"\s*:\s*(\d{16,})(?=\s*[,}])/g, '"id":"#$1"');
  if (exact === text) return JSON.parse(text);
  return JSON.parse(exact, (key, value) => {
    if (key !== "id" || typeof value !== "string" || !/^#\d{16,}$/.test(value)) return value;
    const id = BigInt(value.slice(1));
    return id <= Number.MAX_SAFE_INTEGER ? Number(id) : id;
  });
}
