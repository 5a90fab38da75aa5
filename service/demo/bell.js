/**
 * The page: a bell, its badge and its list. What the server says is true; what a person does is shown
 * at once, and taken back where the server refuses.
 */
import { ApiError, countUnread, listEvents, markRead, markUnread, request } from "./api.js";

/** @typedef {import("./api.js").SystemEvent} SystemEvent */
/** @typedef {import("./api.js").EventId} EventId */
/** @typedef {{id: string, name: string, organization: string | null, role: string, token: string}} Person */

const PAGE = 20; // events more, each time
const MOST = 100; // events in one answer
const DAYS = 30; // how far back
const EVERY = 60_000; // ms between refreshes

const $ = (id) => document.getElementById(id);

/**
 * What one person sees. Who comes next gets a Bell of their own, so an answer that comes late changes
 * one that nobody looks at.
 */
class Bell {
  /** @type {SystemEvent[]} */
  events = [];
  /** @type {number | null} how many match, on the server; null: not known */
  total = null;
  unread = 0;
  size = PAGE; // how many to show
  turn = 0; // grows with each load and mark: the answer to an older turn is not shown
  loading = false;
  writes = Promise.resolve(); // marks go one after the other, so the last click wins

  /** @param {Person} [person] */
  constructor(person) {
    this.person = person;
  }

  /** Ask for the list and the count, and show both. */
  async load() {
    const turn = ++this.turn;
    this.loading = true;
    const from_timestamp = new Date(Date.now() - DAYS * 86_400_000).toISOString();
    const showUnread = $("filter").checked;
    try {
      await this.writes;
      const pages = [];
      for (let skip = 0; skip < this.size; skip += MOST) {
        const take = Math.min(MOST, this.size - skip);
        pages.push(listEvents(this.person, { from_timestamp, showUnread, skip, take }));
      }
      const count = countUnread(this.person, { from_timestamp });
      const [unread, ...answers] = await Promise.all([count, ...pages]);
      if (turn !== this.turn || this !== bell) return;
      const events = answers.flatMap((answer) => answer.events);
      Object.assign(this, { unread, events, total: answers[0].total, loading: false });
      settle("list");
    } catch (error) {
      if (turn !== this.turn || this !== bell) return;
      if (error.status === 403) Object.assign(this, { events: [], unread: 0, total: null });
      this.loading = false;
      complain("list", error, () => bell.load());
    }
    render();
  }

  /**
   * Mark one event (its id) or several (an array of ids).
   * @param {EventId | EventId[]} ids
   * @param {boolean} unread
   */
  async mark(ids, unread) {
    this.turn++; // a list under way does not know of this
    this.change(ids, unread);
    const write = this.writes.then(() => (unread ? markUnread : markRead)(this.person, ids));
    this.writes = write.catch(() => {}); // told below
    try {
      await write;
      settle("mark");
    } catch (error) {
      this.change(ids, !unread);
      const whose = this === bell ? "" : `${this.person.name}: `;
      const what = `${whose}not marked as ${unread ? "unread" : "read"}. `;
      complain("mark", error, () => this.mark(ids, unread), what[0].toUpperCase() + what.slice(1));
    }
    if (this.loading && this === bell) this.load();
  }

  change(ids, unread) {
    for (const event of this.events) {
      if (event.showUnread === unread || ![ids].flat().includes(event.id)) continue;
      event.showUnread = unread;
      this.unread += unread ? 1 : -1;
    }
    render();
  }
}

/** Show the current Bell. The elements of events that stay are kept, and with them the focus. */
function render() {
  const { events, unread, total } = bell;
  const title = unread ? `Notifications, ${unread} unread` : "Notifications";
  $("bell").setAttribute("aria-label", title);
  $("badge").textContent = unread > 999 ? "999+" : unread;
  $("badge").hidden = !unread;
  document.title = unread ? `(${unread}) Notifications` : title;
  if (total !== null) write($("count"), `${unread} unread`);
  $("mark-all").setAttribute("aria-disabled", !events.some((event) => event.showUnread));
  $("more").hidden = total === null || total <= events.length;
  $("empty").hidden = events.length > 0;
  $("empty").textContent =
    !$("message").hidden ? "No events to show."
    : total === null ? "Loading …"
    : $("filter").checked ? "You have read everything."
    : `Nothing has happened in the last ${DAYS} days.`;

  const list = $("events");
  const old = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const held = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const items = new Map(events.map((event) => [String(event.id), event]));
  for (const [id, item] of old) if (!items.has(id)) item.remove();
  [...items].forEach(([id, event], index) => {
    const item = fill(old.get(id) ?? $("event").content.firstElementChild.cloneNode(true), event);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
  if (held >= 0 && !list.contains(document.activeElement)) focusEvent(held);
}

/** @param {HTMLElement} item @param {SystemEvent} event */
function fill(item, event) {
  const [button, time] = [item.querySelector("button"), item.querySelector("time")];
  const sentence = describe(event);
  const action = event.showUnread ? "Mark as read" : "Mark as unread";
  item.dataset.id = event.id;
  item.dataset.event = event.event;
  item.classList.toggle("unread", event.showUnread);
  item.querySelector(".sentence").textContent = sentence;
  item.querySelector(".where").textContent = event.workspaceId ? `in ${event.workspaceId}` : "";
  time.textContent = ago(event.timestamp);
  time.dateTime = event.timestamp;
  time.title = new Date(event.timestamp).toLocaleString("en", { dateStyle: "full", timeStyle: "long" });
  button.textContent = action;
  button.setAttribute("aria-label", `${action}: ${sentence}`);
  button.dataset.testid = event.showUnread ? "mark-one" : "mark-unread";
  button.onclick = () => bell.mark(event.id, !event.showUnread);
  return item;
}

const WORDS = {
  repo: "repository", org: "organization", workspaceuser: "workspace member", apikey: "API key",
  usersettings: "user settings", orgsettings: "organization settings", flashbacknode: "node",
  orgkey: "organization key", aillm: "AI model", aillmapikey: "AI model key",
};

/** Grace Hopper created bucket “logs” */
function describe({ context, contextId, event, jsonData, userId, userName }) {
  let name;
  try {
    name = JSON.parse(jsonData)?.name;
  } catch {
    // Details are whatever the platform wrote; the id will do.
  }
  const who = userId === bell.person.id ? "You" : userName || userId;
  return `${who} ${event} ${WORDS[context] ?? context} “${name ?? contextId}”`;
}

/** 5 min. ago */
function ago(timestamp) {
  const seconds = Math.max(0, (Date.now() - Date.parse(timestamp)) / 1000);
  const units = [["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, length] = units.find(([, length]) => seconds >= length) ?? ["second", 1];
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
  return format.format(-Math.floor(seconds / length), unit);
}

/** A screen reader speaks a live text whenever it is set: set it when it differs. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function focusEvent(index) {
  const buttons = $("events").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] ?? $("bell")).focus();
}

/** Tell the person what failed ("list" or "mark"), and offer to do it `again`. */
function complain(about, error, again, prefix = "") {
  if (!(error instanceof ApiError)) reportError(error); // a fault of this page
  const expired = error.status === 401;
  $("message").dataset.about = about;
  $("message").hidden = false;
  write($("message").firstElementChild, prefix + explain(error));
  $("message").classList.toggle("note", error.status === 403);
  $("retry").hidden = error.status === 403; // asking again changes nothing
  $("retry").textContent = expired ? "Sign in again" : "Try again";
  $("retry").onclick = () => {
    $("retry").textContent = "Trying …";
    if (expired) signIn(about, again);
    else again();
  };
  render();
}

function explain({ status, message, retryAfter }) {
  if (status === 0) return "The service cannot be reached.";
  if (status === 401) return `Your session has ended (${message}).`;
  if (status === 403) return "You belong to no organization, so there are no events for you.";
  if (status === 503) return `The service is not available now. Try again in ${retryAfter ?? 5} s.`;
  return `Something went wrong (${message}).`;
}

/** Take the message back: it worked after all. A mark that failed is not made good by a list. */
function settle(about) {
  if (about === "list" && $("message").dataset.about === "mark") return;
  if ($("message").contains(document.activeElement)) $("bell").focus();
  $("message").hidden = true;
}

/** Get a token for everybody. This is the demo's: a real page asks the platform it belongs to. */
async function signIn(about, then) {
  try {
    const { users } = await request("/demo/users");
    for (const user of users) people.set(user.id, Object.assign(people.get(user.id) ?? {}, user));
    then();
  } catch (error) {
    complain(about, error, () => signIn(about, then));
  }
}

function start() {
  signIn("list", () => {
    const groups = Map.groupBy(people.values(), (person) => person.organization ?? "No organization");
    $("user").replaceChildren(...[...groups].map(([label, members]) => {
      const group = Object.assign(document.createElement("optgroup"), { label });
      group.append(...members.map(({ name, role, id }) => new Option(`${name}, ${role}`, id)));
      return group;
    }));
    become(location.hash.slice(1));
  });
}

/** Be another person; the address remembers who. */
function become(id) {
  bell = new Bell(people.get(id) ?? people.values().next().value);
  $("user").value = bell.person.id;
  history.replaceState(null, "", `#${bell.person.id}`);
  $("message").hidden = true;
  render();
  bell.load();
}

/** Look again after `delay` ms, and then on a slow timer; in a hidden tab, not at all. */
function schedule(delay) {
  clearTimeout(timer);
  if (document.hidden) return;
  timer = setTimeout(() => {
    schedule(EVERY);
    if (bell.person) bell.load();
    else start();
  }, delay);
}

/** @type {Map<string, Person>} */
const people = new Map();
let bell = new Bell();
let timer;

$("bell").onclick = () => {
  $("panel").hidden = !$("panel").hidden;
  $("bell").setAttribute("aria-expanded", !$("panel").hidden);
};
$("user").onchange = () => become($("user").value);
$("filter").onchange = () => {
  bell.size = PAGE;
  bell.load();
};
$("mark-all").onclick = () => {
  const ids = bell.events.filter((event) => event.showUnread).map((event) => event.id);
  if (ids.length) bell.mark(ids, false);
};
$("more").onclick = async () => {
  const shown = bell.events.length;
  bell.size = shown + PAGE;
  await bell.load();
  if (bell.events.length > shown) focusEvent(shown);
};
document.addEventListener("visibilitychange", () => schedule(0));
window.addEventListener("focus", () => schedule(0));
window.addEventListener("online", () => schedule(0));
start();
schedule(EVERY);
