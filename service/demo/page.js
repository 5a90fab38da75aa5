/**
 * The page: it shows what a Bell knows, says what keeps it from being up to date, and hands on what a
 * person does. The Bell is the package in client/, served beside this file.
 */
import { request } from "./client/api.js";
import { Bell } from "./client/bell.js";

/** @typedef {import("./client/api.js").SystemEvent} SystemEvent */
/** @typedef {import("./client/bell.js").BellState} BellState */
/** @typedef {{id: string, name: string, organization: string | null, role: string, token: string, bell?: Bell}} Person */

const DAYS = 30; // how far back

const $ = (id) => document.getElementById(id);

/** @type {Map<string, Person>} */
const people = new Map();
/** @type {Person | null} who is signed in */
let person = null;

/** Show the Bell's state. The elements of events that stay are kept, and with them the focus. */
function render() {
  const { badge, events, hasMore, loaded, trouble } = person.bell.state;
  const unread = badge?.count ?? 0;
  const number = unread + (badge?.more ? "+" : "");
  const title = unread ? `Notifications, ${number} unread` : "Notifications";
  $("bell").setAttribute("aria-label", title);
  $("badge").textContent = unread > 999 ? "999+" : number;
  $("badge").hidden = !unread;
  document.title = unread ? `(${number}) Notifications` : title;
  if (badge) write($("count"), `${number} unread`);
  const canMark = events.length && (unread || events.some((event) => event.showUnread));
  $("mark-all").setAttribute("aria-disabled", !canMark);
  $("more").hidden = !hasMore;
  $("empty").hidden = events.length > 0;
  $("empty").textContent =
    trouble.list ? "No events to show."
    : !loaded ? "Loading …"
    : $("filter").checked ? "You have read everything."
    : `Nothing has happened in the last ${DAYS} days.`;
  tell();

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
  button.onclick = () => (event.showUnread ? person.bell.markRead(event.id) : person.bell.markUnread(event.id));
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
  const who = userId === person.id ? "You" : userName || userId;
  return `${who} ${event} ${WORDS[context] ?? context} “${typeof name === "string" && name ? name : contextId}”`;
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

/** Say what keeps the page from being up to date: marks first, they are the person's own. */
function tell() {
  const { failed, trouble } = person.bell.state;
  const { marks, list, badge } = trouble;
  if (failed.length) complain(failed[0].error, `${failures(failed)}. `);
  else if (marks) complain(marks.error, "", " Your marks are kept, and sent as soon as they can be.");
  else if (list ?? badge) complain((list ?? badge).error);
  else settle();
}

/** Not marked as read: 2 events, not marked as unread: 1 event */
function failures(failed) {
  const told = failed.map(({ action, ids: { length } }) =>
    action === "all" ? "not all marked as read" : `not marked as ${action}: ${length} ${length === 1 ? "event" : "events"}`,
  );
  return told.join(", ").replace(/^n/, "N");
}

function complain(error, before = "", after = "") {
  $("message").hidden = false;
  write($("message").firstElementChild, before + explain(error) + after);
  $("message").classList.toggle("note", error.status === 403);
  $("retry").hidden = error.status === 403; // asking again changes nothing
  write($("retry"), error.status === 401 ? "Sign in again" : "Try again");
}

function explain({ status, message }) {
  if (status === 0) return "The service cannot be reached.";
  if (status === 401) return `Your session has ended (${message}).`;
  if (status === 403) return "You belong to no organization, so there are no events for you.";
  if (status === 503) return "The service is busy, and will be asked again in a moment.";
  return `Something went wrong (${message}).`;
}

/** Take the message back: it worked after all. */
function settle() {
  if ($("message").contains(document.activeElement)) $("bell").focus();
  $("message").hidden = true;
}

/** Get a token for everybody. This is the demo's: a real page asks the platform it belongs to. */
async function signIn() {
  const { users } = await request("/demo/users");
  for (const user of users) people.set(user.id, Object.assign(people.get(user.id) ?? {}, user));
}

async function start() {
  try {
    await signIn();
  } catch (error) {
    return complain(error);
  }
  const groups = Map.groupBy(people.values(), ({ organization }) => organization ?? "No organization");
  $("user").replaceChildren(...[...groups].map(([label, members]) => {
    const group = Object.assign(document.createElement("optgroup"), { label });
    group.append(...members.map(({ name, role, id }) => new Option(`${name}, ${role}`, id)));
    return group;
  }));
  become(location.hash.slice(1));
}

/** Be another person; the address remembers who. What failed for the one before is told to that one. */
function become(id) {
  person?.bell.close();
  person = people.get(id) ?? people.values().next().value;
  person.bell ??= bellOf(person);
  $("user").value = person.id;
  history.replaceState(null, "", `#${person.id}`);
  person.bell.start();
  open();
}

/** @param {Person} owner */
function bellOf(owner) {
  const token = async (refused) => {
    if (refused) await signIn();
    return owner.token;
  };
  const bell = new Bell({ token, user: owner.id, days: DAYS });
  bell.subscribe(() => owner === person && render());
  return bell;
}

/** Show a list, as the filter is set. */
function open() {
  person?.bell.open({ showUnread: $("filter").checked });
}

$("bell").onclick = () => {
  $("panel").hidden = !$("panel").hidden;
  $("bell").setAttribute("aria-expanded", !$("panel").hidden);
  if (!$("panel").hidden) person?.bell.refresh();
};
$("user").onchange = () => become($("user").value);
$("filter").onchange = open;
$("mark-all").onclick = () => {
  if ($("mark-all").ariaDisabled !== "true") person?.bell.markAllRead();
};
$("more").onclick = async () => {
  const shown = new Set(person.bell.state.events.map(({ id }) => id));
  await person.bell.more();
  render();
  const { events, hasMore } = person.bell.state;
  const first = events.findLastIndex(({ id }) => shown.has(id)) + 1;
  const waiting = [$("more"), document.body].includes(document.activeElement);
  if (waiting && (first < events.length || !hasMore)) focusEvent(first);
};
$("retry").onclick = async () => {
  $("retry").textContent = "Trying …";
  await (person ? person.bell.retry() : start());
  if (person) render();
};

/** A double click is one click, and a key that is held down is pressed once. */
addEventListener("click", (event) => {
  if (event.detail > 1 && event.target.closest("button")) event.stopImmediatePropagation();
}, true);
addEventListener("keydown", (event) => {
  if (event.repeat && event.key === "Enter" && event.target.closest("button")) event.preventDefault();
}, true);
addEventListener("online", () => person ?? start());
start();
