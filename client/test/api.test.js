/** api.js: what goes over the wire, to a real HTTP server. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, beforeEach, test } from "node:test";
import { ApiError, countUnread, listEvents, markAllRead, markRead, markUnread } from "../api.js";

let asked, reply, access;
const server = createServer(async (request, response) => {
  let text = "";
  for await (const chunk of request) text += chunk;
  const { method, url, headers } = request;
  asked.push({ call: `${method} ${url}`, text, headers });
  server.emit("asked");
  const { status = 200, type = "application/json", body = '{"success":true}', more = {} } = reply;
  if (reply.hangUp) return response.destroy();
  if (reply.never) return undefined;
  return response.writeHead(status, { "Content-Type": type, "X-Request-ID": "r-1", ...more }).end(body);
});

before(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
});
after(() => {
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  asked = [];
  reply = {};
  access = { token: "good", url: `http://127.0.0.1:${server.address().port}` };
});

const sent = () => asked.map(({ call, text }) => `${call} ${text}`);

test("one id is sent as id, an array as ids", async () => {
  assert.deepEqual(await markRead(access, 5), { success: true });
  await markRead(access, [5, 6]);
  await markUnread(access, [7]);
  assert.deepEqual(sent(), [
    'POST /systemevent/read {"id":5}',
    'POST /systemevent/read {"ids":[5,6]}',
    'DELETE /systemevent/read {"ids":[7]}',
  ]);
  assert.equal(asked[0].headers.authorization, "Bearer good");
  assert.equal(asked[0].headers["content-type"], "application/json");
});

test("the moment of a mark is sent along from then on, and never an earlier one", async () => {
  await listEvents(access);
  reply = { more: { "X-Marked-At": "1764190010" } };
  await markRead(access, 5);
  reply = { more: { "X-Marked-At": "1764190009" } };
  await markUnread(access, 5);
  reply = {};
  await countUnread(access);
  await listEvents(access);
  const moments = asked.map(({ headers }) => headers["x-marked-at"]);
  assert.deepEqual(moments, [undefined, undefined, "1764190010", "1764190010", "1764190010"]);
  assert.equal(access.markedAt, "1764190010");
});

test("an access that may not change works as any", async () => {
  reply = { more: { "X-Marked-At": "1764190010" } };
  assert.deepEqual(await markRead(Object.freeze({ ...access }), 5), { success: true });
});

test("no ids: no request", async () => {
  assert.deepEqual(await markRead(access, []), { success: true });
  assert.deepEqual(await markUnread(access, []), { success: true });
  assert.deepEqual(sent(), []);
});

test("what is no id of an event is not sent", async () => {
  for (const id of [2 ** 53, 1.5, NaN, "5", null]) {
    await assert.rejects(markRead(access, /** @type {any} */ (id)), TypeError);
  }
  assert.deepEqual(sent(), []);
});

test("list, count and mark all send their filter; undefined keys are left out", async () => {
  reply.body = "{}";
  await listEvents(access);
  await listEvents(access, { cursor: null, take: 5, userId: undefined });
  await countUnread(access, { context: 1 });
  await markAllRead(access, { contextId: 'a"b', upTo: 9007199254740993n });
  assert.deepEqual(sent(), [
    "POST /systemevent {}",
    'POST /systemevent {"cursor":null,"take":5}',
    'POST /systemevent/count {"context":1}',
    'POST /systemevent/read/all {"contextId":"a\\"b","upTo":9007199254740993}',
  ]);
});

test("a slash at the end of the URL is fine", async () => {
  await markRead({ ...access, url: `${access.url}//` }, 5);
  assert.equal(asked[0].call, "POST /systemevent/read");
});

test("ids above 2^53 stay exact, both ways; text that looks like one stays text", async () => {
  const details = '{"id":9007199254740993}';
  const event = `{"id" : 9007199254740993 ,"jsonData":${JSON.stringify(details)},"contextId":"\\"id\\":9007199254740993,"}`;
  reply.body = `{"events":[${event},{"id":1234567890123456}]}`;
  const { events } = await listEvents(access);
  assert.deepEqual(events.map(({ id }) => id), [9007199254740993n, 1234567890123456]);
  assert.equal(events[0].jsonData, details);
  assert.equal(events[0].contextId, '"id":9007199254740993,');
  await markRead(access, events.map(({ id }) => id));
  assert.equal(asked[1].text, '{"ids":[9007199254740993,1234567890123456]}');
});

test("a refusal is an ApiError with message, status, request id and time to wait", async () => {
  reply = { status: 503, body: '{"error":"too much is waiting"}', more: { "Retry-After": "7" } };
  const error = await markRead(access, 5).catch((caught) => caught);
  assert.ok(error instanceof ApiError);
  assert.deepEqual(
    [error.message, error.status, error.requestId, error.retryAfter],
    ["too much is waiting", 503, "r-1", 7],
  );
});

test("a refusal that is not JSON is told by its status; a 200 that is not JSON is an error", async () => {
  reply = { status: 502, type: "text/html", body: "<h1>" };
  await assert.rejects(markRead(access, 5), { status: 502, message: "HTTP status 502" });
  reply = { body: "{" };
  await assert.rejects(markRead(access, 5), { status: 200, message: /not valid JSON/ });
});

test("no answer is an ApiError with status 0", async () => {
  reply.hangUp = true;
  await assert.rejects(markRead(access, 5), { name: "ApiError", status: 0, requestId: null });
});

test("an AbortSignal ends the call, with its reason", async () => {
  reply.never = true;
  const abort = new AbortController();
  const call = listEvents(access, {}, { signal: abort.signal });
  await once(server, "asked");
  abort.abort();
  await assert.rejects(call, { name: "AbortError" });
  await assert.rejects(markRead(access, [], { signal: abort.signal }), { name: "AbortError" });
  await assert.rejects(markRead(access, 5, { signal: abort.signal }), { name: "AbortError" });
  assert.equal(asked.length, 1);
});
