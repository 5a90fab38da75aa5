/** The service, as small as its contract allows: one organization, one caller, in memory. */

const PAGE = /^\d+$/;

export class Service {
  /** Newest first. */
  events = [];
  read = new Set();
  token = "good";
  maxCount = 2000;
  /** What was asked: {call: "POST /systemevent", body, text, headers, init} */
  asked = [];
  #next = 1;
  #rules = [];

  /** Let `count` events happen; gives their ids, oldest first. */
  happen(count = 1, fields = {}) {
    return Array.from({ length: count }, () => {
      const id = this.#next++;
      const timestamp = new Date(Date.UTC(2026, 0, 1) + id * 1000).toISOString();
      this.events.unshift({ id, timestamp, contextId: "logs", context: "bucket", event: "created", ...fields });
      return id;
    });
  }

  get unread() {
    return this.events.filter(({ id }) => !this.read.has(id)).length;
  }

  /** The requests of one kind, such as "POST /systemevent/read". */
  calls(call) {
    return this.asked.filter((request) => request.call === call);
  }

  /** Handle the next request of a kind in another way: `handle(answer)` gives a Response, or throws. */
  once(call, handle) {
    this.#rules.push({ call, handle });
  }

  /**
   * Hold back the next answer of a kind; gives {arrived, release}. It is made when the request arrives,
   * or, where `late`, when it is released.
   */
  hold(call, { late = false, answer } = {}) {
    const [arrived, gate] = [deferred(), deferred()];
    this.once(call, async (usual) => {
      const make = answer ?? usual;
      const early = late || make();
      arrived.resolve();
      await gate.promise;
      return late ? make() : early;
    });
    return { arrived: arrived.promise, release: gate.resolve };
  }

  refuse(call, status, headers = {}) {
    this.once(call, () => refusal(status, "because", headers));
  }

  /** In place of the global fetch. */
  fetch = async (url, init) => {
    init.signal?.throwIfAborted();
    const { pathname } = new URL(url, "http://service");
    const call = `${init.method} ${pathname}`;
    this.asked.push({ call, url, init, headers: init.headers, text: init.body, body: JSON.parse(init.body) });
    const answer = () => this.answer(call, init.headers.Authorization, JSON.parse(init.body));
    const index = this.#rules.findIndex((rule) => rule.call === call);
    const handle = index < 0 ? answer : this.#rules.splice(index, 1)[0].handle;
    const aborted = new Promise((_, reject) => {
      init.signal?.addEventListener("abort", () => reject(init.signal.reason));
    });
    return Promise.race([Promise.resolve().then(() => handle(answer)), aborted]);
  };

  answer(call, authorization, body) {
    if (authorization !== `Bearer ${this.token}`) return refusal(401, "token expired");
    if (call === "POST /systemevent") return this.#list(body);
    if (call === "POST /systemevent/count") return this.#count();
    if (call === "POST /systemevent/read/all") return this.#all(body);
    const ids = body.ids ?? [body.id];
    for (const id of ids) call.startsWith("POST") ? this.read.add(id) : this.read.delete(id);
    return json(200, { success: true });
  }

  #list({ showUnread, cursor, skip = 0, take = 20 }) {
    if (cursor != null && !PAGE.test(cursor)) return refusal(400, "cursor: none");
    const seen = this.events.map((event) => ({ ...event, showUnread: !this.read.has(event.id) }));
    const matching = seen.filter((event) => !showUnread || event.showUnread);
    if (cursor === undefined) {
      return json(200, { events: matching.slice(skip, skip + take), total: matching.length, skip, take });
    }
    const older = cursor === null ? matching : matching.filter(({ id }) => id < Number(cursor));
    const events = older.slice(0, take);
    return json(200, { events, take, nextCursor: older.length > take ? String(events.at(-1).id) : null });
  }

  #count() {
    const looked = this.events.slice(0, this.maxCount);
    const count = looked.filter(({ id }) => !this.read.has(id)).length;
    return json(200, { count, more: looked.length < this.events.length });
  }

  #all({ upTo }) {
    const from = upTo === undefined ? 0 : this.events.findIndex(({ id }) => id === upTo);
    if (from >= 0) for (const { id } of this.events.slice(from)) this.read.add(id);
    return json(200, { success: true });
  }
}

export function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

export const json = (status, content, headers = {}) =>
  new Response(JSON.stringify(content), {
    status,
    headers: { "Content-Type": "application/json; charset=utf-8", "X-Request-ID": "r-1", ...headers },
  });

export const refusal = (status, error, headers) => json(status, { error }, headers);
