/**
 * The calls that a notification bell makes. No dependencies; for browsers and Node, copy it.
 *
 * An event's id is a 64-bit integer. Up to 2^53 it is a number here; above, where a number would
 * silently be another event's id, a bigint. Both ways are exact where JSON.parse gives its reviver the
 * source text (Chrome 114, Firefox 135, Safari 18.4, Node 21); older ones throw at such an id.
 *
 * @typedef {number | bigint} EventId
 *
 * @typedef {object} Access
 * @property {string} token  the caller's bearer token
 * @property {string} [url]  where the API is, such as "https://api.example.com"; the page's own origin
 *
 * @typedef {object} Filter  what to list; without timestamps, the last 24 hours
 * @property {string} [from_timestamp]  ISO 8601, inclusive; so is to_timestamp
 * @property {string} [to_timestamp]
 * @property {string} [contextId]  what it happened to
 * @property {number} [context]  0 workspace, 1 bucket, 2 repo, 3 user, 4 org, 5 workspaceuser, 6 apikey,
 *   7 usersettings, 8 orgsettings, 9 flashbacknode, 10 orgkey, 11 aillm, 12 aillmapikey, 13 conversation
 * @property {number} [event]  0 created, 1 updated, 2 deleted
 * @property {string} [userId]  who did it
 * @property {string} [workspaceId]  where
 * @property {boolean} [showUnread]  true: only what the caller has not read
 * @property {number} [skip]  default 0
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
 */

const TIMEOUT = 15_000; // ms; the service itself gives up after 10 s

/** A call that failed. */
export class ApiError extends Error {
  /**
   * @param {string} message  the server's, where it sent one
   * @param {number} status  the HTTP status; 0 where there was no answer
   * @param {number | null} [retryAfter]  seconds, from a 503
   * @param {ErrorOptions} [options]
   */
  constructor(message, status, retryAfter = null, options = undefined) {
    super(message, options);
    this.name = "ApiError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * List events, newest first.
 * @param {Access} access
 * @param {Filter} [filter]
 * @returns {Promise<{events: SystemEvent[], total: number, skip: number, take: number}>}
 */
export const listEvents = (access, filter = {}) => call(access, "POST", "/systemevent", filter);

/**
 * Count what the caller has not read: the badge.
 * @param {Access} access
 * @param {Filter} [filter]
 * @returns {Promise<number>}
 */
export const countUnread = async (access, filter = {}) =>
  (await listEvents(access, { ...filter, showUnread: true, skip: 0, take: 1 })).total;

/**
 * Mark events as read. Safe to repeat; ids that are not of the caller's organization are skipped.
 * @param {Access} access
 * @param {EventId | EventId[]} ids
 * @returns {Promise<{success: true}>}
 */
export const markRead = (access, ids) => call(access, "POST", "/systemevent/read", body(ids));

/**
 * Mark events as unread. Safe to repeat.
 * @param {Access} access
 * @param {EventId | EventId[]} ids
 * @returns {Promise<{success: true}>}
 */
export const markUnread = (access, ids) => call(access, "DELETE", "/systemevent/read", body(ids));

/** @param {EventId | EventId[]} ids */
const body = (ids) => (Array.isArray(ids) ? { ids } : { id: ids });

/**
 * @param {Access} access
 * @param {string} method
 * @param {string} path
 * @param {object} content
 */
const call = ({ token, url = "" }, method, path, content) =>
  request(url + path, {
    method,
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify(content, (_, value) =>
      typeof value === "bigint" ? JSON.rawJSON(String(value)) : value,
    ),
  });

/**
 * Fetch JSON, or throw an ApiError.
 * @param {string} url
 * @param {RequestInit} [init]
 * @returns {Promise<any>}
 */
export async function request(url, init = {}) {
  let response, text, answer;
  try {
    response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT), ...init });
    text = await response.text();
  } catch (cause) {
    throw new ApiError("no answer from the service", 0, null, { cause });
  }
  const { ok, status, headers } = response;
  try {
    const isJson = headers.get("Content-Type")?.includes("application/json");
    if (ok || isJson) answer = JSON.parse(text, exactIds);
  } catch (cause) {
    throw new ApiError("the answer is not valid JSON", status, null, { cause });
  }
  if (ok) return answer;
  const retryAfter = Number(headers.get("Retry-After")) || null;
  throw new ApiError(answer?.error ?? `HTTP status ${status}`, status, retryAfter);
}

/** A reviver for JSON.parse that keeps an id above 2^53 what it is. */
function exactIds(key, value, context) {
  if (key !== "id" || typeof value !== "number" || Number.isSafeInteger(value)) return value;
  return BigInt(context.source);
}
