/** bell.js: what a person sees and what the service has, after anything that a line can do. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Bell } from "../bell.js";
import { Service, deferred, json, refusal } from "./service.js";

const LIST = "POST /systemevent";
const COUNT = "POST /systemevent/count";
const READ = "POST /systemevent/read";
const UNREAD = "DELETE /systemevent/read";
const ALL = "POST /systemevent/read/all";

let service, bells, page;

beforeEach(() => {
  service = new Service();
  bells = [];
  page = new EventTarget(); // in place of window and document
  Object.assign(globalThis, { document: page, addEventListener: page.addEventListener.bind(page) });
  mock.method(globalThis, "fetch", service.fetch);
});
afterEach(() => {
  for (const bell of bells) bell.close();
  delete globalThis.document;
  delete globalThis.addEventListener;
  mock.timers.reset();
  mock.restoreAll();
});

/** A bell whose list is shown. */
async function open(options = {}, filter = {}) {
  const bell = new Bell({ token: () => "good", delay: 0, url: "http://service", ...options });
  bells.push(bell);
  bell.start();
  await bell.open(filter);
  await until(bell, ({ badge }) => badge);
  return bell;
}

/** Wait until a state of the bell is so. */
function until(bell, holds) {
  const { promise, resolve } = deferred();
  const look = () => holds(bell.state) && resolve();
  const end = bell.subscribe(look);
  look();
  return promise.finally(end);
}

const settled = (bell) => until(bell, ({ pending }) => pending === 0);
const counted = (bell, count) => until(bell, ({ badge }) => badge?.count === count);
const unreadIds = (bell) => bell.state.events.filter(({ showUnread }) => showUnread).map(({ id }) => id);
const ids = (bell) => bell.state.events.map(({ id }) => id);
const hide = (is) => {
  page.hidden = is;
  page.dispatchEvent(new Event("visibilitychange"));
};

test("shows the badge that the service counts, and the newest events", async () => {
  service.happen(30);
  const bell = await open();
  assert.deepEqual(bell.state.badge, { count: 30, more: false });
  assert.deepEqual(ids(bell), Array.from({ length: 20 }, (_, index) => 30 - index));
  assert.equal(bell.state.hasMore, true);
  await bell.more();
  assert.equal(bell.state.events.length, 30);
  assert.equal(bell.state.hasMore, false);
});

test("a badge that was counted in part says so", async () => {
  service.maxCount = 3;
  service.happen(5);
  assert.deepEqual((await open()).state.badge, { count: 3, more: true });
});

test("without a list, only the badge is asked for", async () => {
  const bell = new Bell({ token: () => "good" });
  bells.push(bell);
  bell.start();
  await until(bell, ({ badge }) => badge);
  assert.equal(service.calls(LIST).length, 0);
});

test("asks for the same window in badge, list and mark-all", async () => {
  service.happen();
  const bell = await open({ days: 7 }, { context: 1, showUnread: true });
  bell.markAllRead();
  await settled(bell);
  for (const { body } of [LIST, COUNT, ALL].flatMap((call) => service.calls(call))) {
    const days = (Date.now() - Date.parse(body.from_timestamp)) / 86_400_000;
    assert.equal(Math.round(days), 7);
  }
  const { from_timestamp, ...body } = service.calls(ALL)[0].body;
  assert.deepEqual(body, { context: 1, upTo: 1 });
});

test("tells its listeners of each change, with a state that stays the same between two", async () => {
  service.happen();
  const bell = await open();
  const { state } = bell;
  assert.equal(bell.state, state);
  const told = deferred();
  const end = bell.subscribe(told.resolve);
  bell.markRead(1);
  await told.promise;
  assert.notEqual(bell.state, state);
  end();
});

test("a mark is shown at once, and the badge follows when the service has counted", async () => {
  service.happen(3);
  const bell = await open();
  const held = service.hold(READ);
  bell.markRead(2);
  assert.deepEqual(unreadIds(bell), [3, 1]);
  assert.equal(bell.state.badge.count, 3);
  held.release();
  await counted(bell, 2);
});

test("marks in quick succession are one request, kept alive beyond the page", async () => {
  service.happen(3);
  const bell = await open();
  for (const id of [3, 2, 1]) bell.markRead(id);
  await settled(bell);
  assert.deepEqual(service.calls(READ).map(({ body }) => body), [{ ids: [3, 2, 1] }]);
  assert.equal(service.calls(READ)[0].init.keepalive, true);
});

test("marks while one is under way are one request after it", async () => {
  service.happen(4);
  const bell = await open();
  const held = service.hold(READ);
  bell.markRead(1);
  await held.arrived;
  bell.markRead(2);
  bell.markRead(3);
  held.release();
  await settled(bell);
  assert.deepEqual(service.calls(READ).map(({ body }) => body), [{ id: 1 }, { ids: [2, 3] }]);
});

test("many ids are several requests, each small enough to outlive the page", async () => {
  service.happen(2500);
  const bell = await open();
  bell.markRead(service.events.map(({ id }) => id));
  await settled(bell);
  assert.deepEqual(service.calls(READ).map(({ body }) => body.ids.length), [1000, 1000, 500]);
  assert.equal(service.unread, 0);
});

test("read, unread, read with the first one refused ends at read, on both sides", async () => {
  service.happen();
  const bell = await open();
  const held = service.hold(READ, { answer: () => json(500, { error: "no" }) });
  bell.markRead(1);
  await held.arrived;
  bell.markUnread(1);
  bell.markRead(1);
  held.release();
  await settled(bell);
  assert.deepEqual([unreadIds(bell), service.unread, bell.state.failed], [[], 0, []]);
});

test("read and unread are sent in their order", async () => {
  service.happen();
  const bell = await open();
  const held = service.hold(READ);
  bell.markRead(1);
  await held.arrived;
  bell.markUnread(1);
  assert.deepEqual(unreadIds(bell), [1]);
  held.release();
  await settled(bell);
  assert.deepEqual([unreadIds(bell), service.unread], [[1], 1]);
  assert.equal(service.calls(UNREAD).length, 1);
});

test("a mark that is refused is taken back, and told with its ids and the error", async () => {
  service.happen(2);
  const bell = await open();
  service.refuse(READ, 500);
  bell.markRead([1, 2]);
  await settled(bell);
  assert.deepEqual(unreadIds(bell), [2, 1]);
  const [{ action, ids: failed, error }] = bell.state.failed;
  assert.deepEqual([action, failed, error.status, error.requestId], ["read", [1, 2], 500, "r-1"]);
});

test("a success elsewhere does not hide failures, and a retry repeats all of them", async () => {
  service.happen(4);
  service.read.add(4);
  const bell = await open();
  for (const [call, mark] of [[READ, () => bell.markRead(1)], [READ, () => bell.markRead(2)], [UNREAD, () => bell.markUnread(4)]]) {
    service.refuse(call, 500);
    mark();
    await settled(bell);
  }
  bell.markRead(3);
  await settled(bell);
  assert.deepEqual(bell.state.failed.map(({ action, ids }) => [action, ids]), [["read", [1]], ["read", [2]], ["unread", [4]]]);
  await bell.retry();
  assert.deepEqual([bell.state.failed, unreadIds(bell), [...service.read]], [[], [4], [3, 1, 2]]);
});

test("an event that is marked anew has not failed any more; what failed can be dismissed", async () => {
  service.happen(2);
  const bell = await open();
  service.refuse(READ, 500);
  bell.markRead([1, 2]);
  await settled(bell);
  bell.markRead(1);
  assert.deepEqual(bell.state.failed.map(({ ids }) => ids), [[2]]);
  bell.dismiss();
  assert.deepEqual(bell.state.failed, []);
  await settled(bell);
  assert.equal(service.unread, 1);
});

test("the badge is never negative, when an event arrives between count and list", async () => {
  const badges = [];
  const bell = await open();
  bell.subscribe(() => badges.push(bell.state.badge.count));
  service.once(COUNT, async (answer) => {
    const counted = answer();
    service.happen();
    return counted;
  });
  await bell.refresh();
  await bell.refresh();
  bell.markRead(1);
  await counted(bell, 0);
  assert.ok(badges.every((count) => count >= 0));
});

test("a count that fails leaves the list, and a list that fails the badge", async () => {
  service.happen(2);
  const bell = await open();
  service.refuse(COUNT, 500);
  service.refuse(LIST, 500);
  await bell.refresh();
  assert.deepEqual([ids(bell), bell.state.badge.count], [[2, 1], 2]);
  assert.deepEqual([bell.state.trouble.badge.error.status, bell.state.trouble.list.error.status], [500, 500]);
  await bell.refresh();
  assert.deepEqual([bell.state.trouble.badge, bell.state.trouble.list], [null, null]);
});

test("a user without an organization has neither events nor a badge", async () => {
  service.happen(2);
  const bell = await open();
  service.refuse(LIST, 403);
  await bell.refresh();
  assert.deepEqual(ids(bell), []);
  assert.equal(bell.state.trouble.list.error.status, 403);
});

test("an answer that was given before a mark does not take the mark back", async () => {
  service.happen(2);
  const bell = await open();
  const held = service.hold(LIST);
  const refreshed = bell.refresh();
  await held.arrived;
  bell.markRead(1);
  await settled(bell);
  held.release();
  await refreshed;
  assert.deepEqual(unreadIds(bell), [2]);
});

test("a refresh brings what is new, takes what is gone, and shows nothing twice", async () => {
  service.happen(25);
  const bell = await open();
  await bell.more();
  service.happen(3);
  service.events = service.events.filter(({ id }) => id !== 24);
  service.read.add(23);
  await bell.refresh();
  assert.deepEqual(ids(bell), service.events.map(({ id }) => id));
  assert.ok(!unreadIds(bell).includes(23));
});

test("a refresh reaches the end of the list, though events have taken places at its top", async () => {
  service.happen(70);
  const bell = await open();
  await bell.more();
  service.happen(5);
  service.read.add(31);
  await bell.refresh();
  assert.deepEqual(ids(bell), Array.from({ length: 45 }, (_, index) => 75 - index));
  assert.ok(!unreadIds(bell).includes(31));
});

test("older events go on where the list ends, whatever has arrived meanwhile", async () => {
  service.happen(70);
  const bell = await open();
  service.happen(5);
  await bell.more();
  assert.deepEqual(ids(bell), Array.from({ length: 40 }, (_, index) => 70 - index));
  service.happen(25);
  await bell.refresh();
  await bell.more();
  assert.deepEqual(ids(bell), Array.from({ length: 90 }, (_, index) => 100 - index));
});

test("an event that is listed again is not shown twice", async () => {
  service.happen(22);
  const bell = await open();
  service.once(LIST, () => json(200, { events: service.events.slice(15), take: 20, nextCursor: null }));
  await bell.more();
  assert.deepEqual(ids(bell), service.events.map(({ id }) => id));
});

test("after a long absence the list has no gap", async () => {
  service.happen(20);
  const bell = await open();
  service.happen(1000);
  await bell.refresh();
  const [newest] = ids(bell);
  assert.deepEqual(ids(bell), Array.from({ length: ids(bell).length }, (_, index) => newest - index));
  await bell.more();
  assert.deepEqual(ids(bell), Array.from({ length: ids(bell).length }, (_, index) => newest - index));
});

test("older events that got no answer come when the line is back", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  service.happen(30);
  const bell = await open();
  service.once(LIST, () => {
    throw new TypeError("Failed to fetch");
  });
  await bell.more();
  assert.equal(bell.state.trouble.list.error.status, 0);
  page.dispatchEvent(new Event("online"));
  mock.timers.tick(0);
  await until(bell, ({ events }) => events.length === 30);
});

test("pages that are empty are passed over", async () => {
  service.happen(30);
  const bell = await open();
  for (const nextCursor of ["11", "11"]) service.once(LIST, () => json(200, { events: [], take: 20, nextCursor }));
  await bell.more();
  assert.equal(bell.state.events.length, 30);
});

test("events of one millisecond keep the order of the service", async () => {
  service.happen(3, {});
  for (const event of service.events) event.timestamp = "2026-01-01T00:00:00.000Z";
  const bell = await open();
  service.events.reverse();
  await bell.refresh();
  assert.deepEqual(ids(bell), [1, 2, 3]);
  await bell.open({ showUnread: true });
  service.read.add(2);
  await bell.refresh();
  assert.deepEqual(ids(bell), [1, 2, 3]);
});

test("under the filter a marked event stays in its place, until the filter is set anew", async () => {
  service.happen(4);
  const bell = await open({}, { showUnread: true });
  bell.markRead(3);
  service.read.add(1); // by somebody else
  await settled(bell);
  service.happen(1);
  await bell.refresh();
  assert.deepEqual([ids(bell), unreadIds(bell)], [[5, 4, 3, 2, 1], [5, 4, 2]]);
  await bell.open({ showUnread: true });
  assert.deepEqual(ids(bell), [5, 4, 2]);
});

test("an answer to the filter before is not shown", async () => {
  service.happen(2);
  service.read.add(1);
  const bell = await open();
  const held = service.hold(LIST);
  const before = bell.refresh();
  await held.arrived;
  const opened = bell.open({ showUnread: true });
  held.release();
  await Promise.all([before, opened]);
  assert.deepEqual(ids(bell), [2]);
  assert.equal(bell.state.trouble.list, null);
});

test("mark all reaches what is not shown, and leaves what has arrived since", async () => {
  service.happen(200);
  const bell = await open();
  service.happen(1);
  bell.markAllRead();
  assert.deepEqual(unreadIds(bell), []);
  await counted(bell, 1);
  assert.equal(service.calls(ALL)[0].body.upTo, 200);
});

test("what is listed while mark all is under way is right when it is done", async () => {
  service.happen(30);
  const bell = await open();
  const held = service.hold(ALL, { late: true });
  bell.markAllRead();
  await held.arrived;
  await bell.more();
  held.release();
  await until(bell, ({ events, pending }) => events.length === 30 && !pending && !unreadIds(bell).length);
});

test("marks before and after mark all are sent before and after it", async () => {
  service.happen(3);
  const bell = await open();
  bell.markUnread(1);
  bell.markAllRead();
  bell.markUnread(2);
  assert.deepEqual(unreadIds(bell), [2]);
  await settled(bell);
  await counted(bell, 1);
  assert.deepEqual([...service.read].sort(), [1, 3]);
});

test("a mark all that is refused is taken back, and a retry means the same events", async () => {
  service.happen(2);
  const bell = await open();
  service.refuse(ALL, 500);
  bell.markAllRead();
  await settled(bell);
  assert.deepEqual(unreadIds(bell), [2, 1]);
  service.happen(1);
  await bell.retry();
  await counted(bell, 1);
  assert.deepEqual([service.calls(ALL).at(-1).body.upTo, service.unread], [2, 1]);
});

test("leaving the page sends at once what waits, in one task", async () => {
  service.happen(3);
  service.read.add(3);
  const bell = await open({ delay: 60_000 });
  bell.markRead(1);
  bell.markUnread(3);
  page.dispatchEvent(new Event("pagehide"));
  assert.deepEqual(service.asked.slice(-2).map(({ call, body }) => [call, body]), [[READ, { id: 1 }], [UNREAD, { id: 3 }]]);
  await settled(bell);
  assert.equal(service.asked.filter(({ call }) => call.endsWith("/read")).length, 2);
});

test("toggled before it is sent, an event is marked once", async () => {
  service.happen();
  const bell = await open();
  bell.markRead(1);
  bell.markUnread(1);
  bell.markRead(1);
  await settled(bell);
  assert.deepEqual([service.calls(READ).length, service.calls(UNREAD).length, service.unread], [1, 0, 0]);
});

test("what overtook an older request on the same event is sent again: the last click wins", async () => {
  service.happen();
  const bell = await open();
  const held = service.hold(READ, { late: true });
  bell.markRead(1);
  await held.arrived;
  bell.markUnread(1);
  hide(true);
  assert.equal(service.calls(UNREAD).length, 1);
  held.release();
  await settled(bell);
  assert.deepEqual([service.calls(UNREAD).length, service.unread, unreadIds(bell)], [2, 1, [1]]);
});

test("a hidden page does not ask, and asks at once when it is seen again", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  service.happen();
  const bell = new Bell({ token: () => "good", url: "http://service" });
  bells.push(bell);
  bell.start();
  await until(bell, ({ badge }) => badge);
  mock.timers.tick(60_000);
  mock.timers.tick(0);
  await until(bell, () => service.calls(COUNT).length === 2);
  await new Promise(setImmediate); // the answer has been dealt with
  hide(true);
  mock.timers.tick(600_000);
  assert.equal(service.calls(COUNT).length, 2);
  hide(false);
  mock.timers.tick(0);
  assert.equal(service.calls(COUNT).length, 3);
});

test("a refused token: the page is asked once for a new one, whatever was under way", async () => {
  service.happen(2);
  const given = [];
  const bell = await open({
    token: (refused) => {
      given.push(refused);
      return refused ? "better" : "good";
    },
  });
  service.token = "better";
  bell.markRead(1);
  await Promise.all([bell.refresh(), settled(bell)]);
  await counted(bell, 1);
  assert.deepEqual(given, [undefined, "good"]);
  assert.deepEqual([service.unread, bell.state.failed], [1, []]);
});

test("a call that is refused after the token has been renewed does not ask for another", async () => {
  service.happen();
  let given = 0;
  const bell = await open({ token: (refused) => (given++, refused ? "better" : "good") });
  const held = service.hold(COUNT, { answer: () => refusal(401, "token expired") });
  const refreshed = bell.refresh();
  await held.arrived;
  service.token = "better";
  bell.markRead(1);
  await settled(bell);
  held.release();
  await refreshed;
  assert.deepEqual([given, bell.state.trouble.badge], [2, null]);
});

test("the same token again is not sent again", async () => {
  service.happen();
  const bell = await open();
  service.token = "better";
  bell.markRead(1);
  await settled(bell);
  assert.deepEqual([service.calls(READ).length, bell.state.failed.length], [1, 1]);
});

test("a new token that is refused too is a failure, once; signing in again makes the mark", async () => {
  service.happen();
  let token = "good";
  let given = 0;
  const bell = await open({ token: () => (given++, token) });
  service.token = "better";
  token = "worse";
  bell.markRead(1);
  await settled(bell);
  assert.deepEqual([given, service.calls(READ).length], [2, 2]);
  assert.deepEqual([unreadIds(bell), bell.state.failed[0].error.status], [[1], 401]);
  token = "better";
  await bell.retry();
  await settled(bell);
  assert.deepEqual([unreadIds(bell), bell.state.failed], [[], []]);
});

test("a 503 is waited out as it says, and the mark stays shown", async () => {
  service.happen();
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  const bell = await open();
  mock.method(Math, "random", () => 0);
  service.refuse(READ, 503, { "Retry-After": "7" });
  bell.markRead(1);
  mock.timers.tick(0);
  await until(bell, ({ trouble }) => trouble.marks);
  assert.equal(bell.state.trouble.marks.retryAt, Date.now() + 7000);
  assert.deepEqual(unreadIds(bell), []);
  page.dispatchEvent(new Event("focus"));
  bell.markRead(1);
  mock.timers.tick(6999);
  assert.equal(service.calls(READ).length, 1);
  mock.timers.tick(1);
  await settled(bell);
  assert.equal(service.unread, 0);
});

test("no answer: waits longer each time; when the line is back, it does not wait", async () => {
  service.happen();
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  const bell = await open();
  mock.method(Math, "random", () => 1);
  const offline = () => {
    throw new TypeError("Failed to fetch");
  };
  bell.markRead(1);
  let tries = 0;
  for (const wait of [0, 1000, 2000, 4000]) {
    service.once(READ, offline);
    mock.timers.tick(wait);
    tries++;
    await until(bell, ({ trouble }) => trouble.marks && service.calls(READ).length === tries);
    await until(bell, ({ trouble }) => trouble.marks.retryAt > Date.now());
  }
  assert.equal(bell.state.trouble.marks.retryAt, Date.now() + 8000);
  page.dispatchEvent(new Event("online"));
  mock.timers.tick(0);
  await settled(bell);
  assert.deepEqual([service.unread, unreadIds(bell), bell.state.failed], [0, [], []]);
  service.once(READ, offline);
  bell.markRead(1);
  mock.timers.tick(0);
  await until(bell, ({ trouble }) => trouble.marks);
  assert.equal(bell.state.trouble.marks.retryAt, Date.now() + 1000);
});

test("tabs of one user see each other's marks and badge; others do not", async () => {
  service.happen(3);
  const [other, here, there] = [await open({ user: "bob" }), await open({ user: "ada" }), await open({ user: "ada" })];
  const asked = service.calls(COUNT).length;
  here.markRead(2);
  await counted(there, 2);
  assert.deepEqual(unreadIds(there), [3, 1]);
  here.markUnread(2);
  await counted(there, 3);
  assert.deepEqual(unreadIds(there), [3, 2, 1]);
  assert.equal(service.calls(COUNT).length, asked + 2); // one tab asks for all
  assert.deepEqual(unreadIds(other), [3, 2, 1]);
  here.markAllRead();
  await counted(there, 0);
  await until(there, () => unreadIds(there).length === 0);
  assert.equal(other.state.badge.count, 3);
});

test("of two counts, the one that was asked for later is shown", async () => {
  service.happen(3);
  const [here, there] = [await open({ user: "ada" }), await open({ user: "ada" })];
  const held = service.hold(COUNT);
  const refreshed = there.refresh();
  await held.arrived;
  here.markRead(1);
  await counted(there, 2);
  held.release();
  await refreshed;
  assert.equal(there.state.badge.count, 2);
});

test("what is asked after a mark tells its moment, in every tab", async () => {
  service.happen(3);
  const [here, there] = [await open({ user: "ada" }), await open({ user: "ada" })];
  service.once(READ, (answer) => {
    const { body, status } = answer();
    return new Response(body, { status, headers: { "X-Marked-At": "1764190010" } });
  });
  service.asked = [];
  here.markRead(2);
  await Promise.all([here, there].map((bell) => counted(bell, 2)));
  await Promise.all([here, there].map((bell) => bell.refresh()));
  const asked = service.asked.filter(({ call }) => call !== READ);
  assert.ok(asked.filter(({ call }) => call === LIST).length >= 2);
  for (const { headers } of asked) assert.equal(headers["X-Marked-At"], "1764190010");
});

test("when a tab is left with marks under way, the others ask again a little later", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  service.happen(1);
  const options = { user: "ada", every: 2 ** 31 - 1 };
  const [here, there] = [await open(options), await open(options)];
  service.hold(READ);
  here.markRead(1);
  here.close();
  await until(here, () => service.calls(READ).length === 1);
  for (let second = 0; there.state.badge.count && second < 50; second++) {
    mock.timers.tick(1000);
    await new Promise(setImmediate);
  }
  assert.equal(there.state.badge.count, 0);
});

test("a mark that another tab has made is not undone by an answer from before", async () => {
  service.happen(1);
  const [here, there] = [await open({ user: "ada" }), await open({ user: "ada" })];
  const held = service.hold(LIST);
  const refreshed = there.refresh();
  await held.arrived;
  here.markRead(1);
  await until(there, () => unreadIds(there).length === 0);
  held.release();
  await refreshed;
  assert.deepEqual(unreadIds(there), []);
});

test("closed, it sends what is marked, calls off what it asked, and stays silent", async () => {
  service.happen();
  const bell = await open({ delay: 60_000 });
  const held = service.hold(LIST);
  const refreshed = bell.refresh();
  await held.arrived;
  bell.markRead(1);
  bell.close();
  await refreshed;
  assert.ok(service.calls(LIST).at(-1).init.signal.aborted);
  assert.equal(bell.state.trouble.list, null);
  await settled(bell);
  assert.equal(service.unread, 0);
});

test("closed, it does not try again; started again, it does", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  service.happen();
  const bell = await open();
  service.refuse(READ, 503);
  bell.markRead(1);
  bell.close();
  await until(bell, ({ trouble }) => trouble.marks);
  mock.timers.tick(600_000);
  assert.equal(service.calls(READ).length, 1);
  bell.start();
  mock.timers.tick(0);
  await settled(bell);
  assert.equal(service.unread, 0);
});
