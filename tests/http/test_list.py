"""POST /systemevent: the events that a caller may see, each with the caller's read state."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.conftest import Sandbox, Start, bearer
from tests.support.cluster import Cluster
from tests.support.shared import Client, Shared, clean, refused, serve

Event = dict[str, Any]

CONTEXTS = [
    "workspace", "bucket", "repo", "user", "org", "workspaceuser", "apikey", "usersettings",
    "orgsettings", "flashbacknode", "orgkey", "aillm", "aillmapikey", "conversation",
]  # fmt: skip
EVENTS = ["created", "updated", "deleted"]
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
FIELDS = {
    "id": int,
    "timestamp": str,
    "contextId": str,
    "context": str,
    "event": str,
    "orgId": str,
    "userId": str,
    "userName": str,
    "userEmail": str,
    "workspaceId": str | None,
    "jsonData": str | None,
    "showUnread": bool,
}

# A third organization, for what tests/support/data.sql does not have: an event two days old, three
# at the same moment, ids that no double holds, and a user who is gone.
INITECH = """
insert into users (id, organization_id, name, email, org_role) values
  ('ivan', 'initech', 'Ivan Owner', 'ivan@initech.example', 255),
  ('mia', 'initech', 'Mia Billing', 'mia@initech.example', 1),
  ('max', 'initech', 'Max Workspaces', 'max@initech.example', 2);
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
values
  ('initech', 1, now() - interval '49 hours', 0, 0, 'old', 'ivan', null),
  ('initech', 2, now() - interval '23 hours 59 minutes', 0, 0, 'young', 'ivan', null),
  ('initech', 7, '2020-02-29T12:00:00.1239Z', 13, 2, 'tie', 'ivan', 'w1'),
  ('initech', 9, '2020-02-29T12:00:00.1239Z', 13, 2, 'tie', 'ivan', 'w1'),
  ('initech', 8, '2020-02-29T12:00:00.1239Z', 13, 2, 'tie', 'ivan', 'w1'),
  ('initech', 9007199254740993, '2019-01-01T00:00:00Z', 4, 1, 'big', 'gone', null),
  ('initech', 9223372036854775807, '2019-01-01T00:00:01+02:00', 4, 1, 'big', 'mia', null)
"""


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service with a third organization."""
    async with serve(cluster) as shared:
        await shared.database.owner.execute(INITECH)
        yield shared


database, client = clean()


async def page(client: Client, user: str = "owner", /, **filters: object) -> Any:
    """The whole answer to a list request."""
    answer = await client.post("/systemevent", json=filters, headers=bearer(user))
    assert answer.status == 200, await answer.text()
    assert answer.content_type == "application/json"
    body = await answer.json()
    assert list(body) == ["events", "total", "skip", "take"]
    return body


async def listed(client: Client, user: str = "owner", /, **filters: object) -> list[int]:
    """The ids of all events listed, in order."""
    body = await page(client, user, **{"take": 100, **filters})
    assert body["total"] == len(body["events"])
    return [event["id"] for event in body["events"]]


async def mark(client: Client, user: str, *ids: int, method: str = "POST") -> None:
    """Mark events as read, or unread with DELETE."""
    answer = await client.request(
        method, "/systemevent/read", json={"ids": ids}, headers=bearer(user)
    )
    assert answer.status == 200


def acme(event_id: int) -> Event:
    """What tests/support/data.sql says of an event in acme; without the time."""
    user = ("alice", "bob", "owner")[event_id % 3]
    name = {"alice": "Alice Member", "bob": "Bob Other", "owner": "Owen Owner"}[user]
    return {
        "id": event_id,
        "contextId": f"thing-{event_id}",
        "context": CONTEXTS[event_id % 14],
        "event": EVENTS[event_id % 3],
        "orgId": "acme",
        "userId": user,
        "userName": name,
        "userEmail": f"{user}@acme.example",
        "workspaceId": None if event_id % 2 else ("w1", "w2")[event_id // 2 % 2],
        "jsonData": None if event_id % 5 else f'{{"n": {event_id}}}',
        "showUnread": True,
    }


ACME = [acme(event_id) for event_id in range(1, 21)]
SEEN = {
    "owner": ACME,
    "admin": ACME,
    "alice": [e for e in ACME if e["userId"] == "alice" or e["workspaceId"] == "w1"],
    "bob": [e for e in ACME if e["userId"] == "bob" or e["workspaceId"] == "w2"],
}


async def test_every_field_is_there_with_its_type(client: Client, database: Sandbox) -> None:
    """The names, types and values of the contract; the time is the database's."""
    rows = await database.owner.fetch(
        "select id, \"timestamp\" from system_event_log where organization_id = 'acme'"
    )
    times = {row["id"]: row["timestamp"] for row in rows}
    events = (await page(client, take=100))["events"]
    assert [event["id"] for event in events] == list(range(1, 21))
    for event in events:
        assert list(event) == list(FIELDS)
        assert all(isinstance(event[name], kind) for name, kind in FIELDS.items())
        assert type(event["id"]) is int
        timestamp = event.pop("timestamp")
        assert TIMESTAMP.fullmatch(timestamp)
        exact = times[event["id"]]
        assert timedelta() <= exact - datetime.fromisoformat(timestamp) < timedelta(milliseconds=1)
        assert event == acme(event["id"])


@pytest.mark.parametrize("user", SEEN)
async def test_a_caller_sees_what_the_role_allows(client: Client, user: str) -> None:
    """Owner and administrators all of it; others their own events and those of their workspaces."""
    assert await listed(client, user) == [event["id"] for event in SEEN[user]]


async def test_nobody_sees_another_organization(client: Client) -> None:
    """Not its owner, and not through a workspace of the same name."""
    for user, organization in (("owner", "acme"), ("gina", "globex"), ("ivan", "initech")):
        events = (await page(client, user, take=100, from_timestamp="2000-01-01T00:00Z"))["events"]
        assert {event["orgId"] for event in events} == {organization}
    assert await listed(client, "gina") == list(range(1, 31))


@pytest.mark.parametrize("user", ["mia", "max"])
async def test_other_roles_see_as_little_as_users(client: Client, user: str) -> None:
    """Billing and workspaces are no administrators."""
    seen = await listed(client, user, from_timestamp="2000-01-01T00:00Z")
    assert seen == ([2**63 - 1] if user == "mia" else [])


@pytest.mark.parametrize("user", SEEN)
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"contextId": "thing-7"},
        {"contextId": "thing"},
        {"contextId": ""},
        *({"context": number} for number in range(14)),
        *({"event": number} for number in range(3)),
        {"event": 1.0},
        {"userId": "alice"},
        {"userId": "bob"},
        {"userId": "gina"},
        {"userId": "stranger"},
        {"userId": "alice' or true --"},
        {"workspaceId": "w1"},
        {"workspaceId": "w2"},
        {"workspaceId": "w9"},
        {"workspaceId": "%"},
        {"userId": "bob", "workspaceId": "w2", "event": 1},
        {"userId": "gina", "workspaceId": "w1"},
        {"context": 3, "event": 1},
        {"contextId": None, "context": None, "event": None, "userId": None, "workspaceId": None},
        {"orgId": "globex", "organization_id": "globex", "role": 255, "unknown": [{}]},
    ],
    ids=json.dumps,
)
async def test_filters_narrow_what_a_caller_sees(
    client: Client, user: str, filters: dict[str, Any]
) -> None:
    """All that are given hold at once; one on what the caller may not see gives an empty list."""
    words = dict(filters)
    if words.get("context") is not None:
        words["context"] = CONTEXTS[filters["context"]]
    if words.get("event") is not None:
        words["event"] = EVENTS[int(filters["event"])]
    expected = [
        event["id"]
        for event in SEEN[user]
        if all(
            event[k] == v
            for k, v in words.items()
            if k in FIELDS and k != "orgId" and v is not None
        )
    ]
    assert await listed(client, user, **filters) == expected


@pytest.mark.parametrize("number", [14, 99, -1, 2**15 - 1, -(2**15)])
async def test_what_has_no_word_is_listed_as_digits_and_can_be_filtered(
    client: Client, database: Sandbox, number: int
) -> None:
    """Every smallint, as the platform may grow."""
    await database.owner.execute(
        'insert into system_event_log (organization_id, id, "timestamp", context, event, '
        "context_id, user_id) values ('initech', 100, now(), $1, $1, '', 'ivan')",
        number,
    )
    try:
        for name in ("context", "event"):
            assert await listed(client, "ivan", **{name: number}) == [100]
        event = (await page(client, "ivan", event=number))["events"][0]
    finally:
        await database.owner.execute("delete from system_event_log where id = 100")
    assert (event["context"], event["event"]) == (str(number), str(number))


async def test_without_a_time_the_last_24_hours_are_listed(client: Client) -> None:
    """Neither older nor all."""
    assert await listed(client, "ivan") == [2]
    assert await listed(client, "ivan", from_timestamp=None, to_timestamp=None) == [2]


@pytest.mark.parametrize(
    ("window", "ids"),
    [
        ({"from_timestamp": "2020-01-01T00:00:00Z"}, [2, 1, 9, 8, 7]),
        ({"to_timestamp": "2020-12-31T23:59:59Z"}, [9, 8, 7, 2**53 + 1, 2**63 - 1]),
        ({"to_timestamp": "2020-01-01T00:00:00Z"}, [2**53 + 1, 2**63 - 1]),
        ({"from_timestamp": "2020-01-01T00:00Z", "to_timestamp": "2021-01-01T00:00Z"}, [9, 8, 7]),
        ({"from_timestamp": "2020-02-29T12:00:00.1239Z"}, [2, 1, 9, 8, 7]),
        ({"from_timestamp": "2020-02-29T12:00:00.124Z"}, [2, 1]),
        ({"to_timestamp": "2020-02-29T12:00:00.1239Z"}, [9, 8, 7, 2**53 + 1, 2**63 - 1]),
        ({"to_timestamp": "2020-02-29T12:00:00.1238Z"}, [2**53 + 1, 2**63 - 1]),
        ({"to_timestamp": "2019-01-01T00:00:00"}, [2**53 + 1, 2**63 - 1]),
        ({"to_timestamp": "2019-01-01T00:59:59+01:00"}, [2**63 - 1]),
        ({"to_timestamp": "20190101T005959+0100"}, [2**63 - 1]),
        ({"from_timestamp": "2019-01-01T00:00Z", "to_timestamp": "2019-01-01T00:00Z"}, [2**53 + 1]),
        ({"from_timestamp": "9999-12-31T23:59:59.999Z"}, []),
        ({"to_timestamp": "0001-01-01T00:00:00Z"}, []),
    ],
    ids=json.dumps,
)  # fmt: skip
async def test_a_window_is_inclusive_and_open_where_no_end_is_given(
    client: Client, window: dict[str, str], ids: list[int]
) -> None:
    """Newest first, ties by id; a time without an offset is UTC."""
    assert await listed(client, "ivan", **window) == ids


@pytest.mark.parametrize("text", ["2020-02-29t12:00:00z", "2020-02-29T12:00:00,124Z"])
async def test_other_spellings_of_iso_8601_are_understood(client: Client, text: str) -> None:
    """Lower case (RFC 3339, section 5.6), and the comma."""
    assert await listed(client, "ivan", from_timestamp=text)


async def test_a_listed_time_can_be_asked_for_again(client: Client) -> None:
    """The time of an event, sent back as from_timestamp, finds the event."""
    newest = (await page(client, take=1))["events"][0]
    assert await listed(client, from_timestamp=newest["timestamp"]) == [newest["id"]]


async def test_times_and_ids_are_exact(client: Client) -> None:
    """UTC with milliseconds and Z; ids above 2^53 digit by digit; who is gone has no name."""
    answer = await client.post(
        "/systemevent", json={"to_timestamp": "2020-12-31T00:00Z"}, headers=bearer("ivan")
    )
    text = await answer.text()
    events = {event["id"]: event for event in json.loads(text)["events"]}
    assert re.findall(r'"id": ?(\d+)[,}]', text)[-2:] == ["9007199254740993", "9223372036854775807"]
    assert events[7]["timestamp"] == "2020-02-29T12:00:00.123Z"
    assert events[2**53 + 1]["timestamp"] == "2019-01-01T00:00:00.000Z"
    assert events[2**63 - 1]["timestamp"] == "2018-12-31T22:00:01.000Z"
    assert (events[2**53 + 1]["userName"], events[2**53 + 1]["userEmail"]) == ("", "")


async def test_an_exact_id_can_be_marked(client: Client) -> None:
    """What the list says is what marking takes."""
    await mark(client, "ivan", 2**53 + 1, 2**63 - 1)
    until = "2019-12-31T00:00Z"
    assert await listed(client, "ivan", to_timestamp=until, showUnread=True) == []
    assert len(await listed(client, "ivan", to_timestamp=until)) == 2


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b'{"x": 1}'])
async def test_an_empty_body_asks_for_the_defaults(client: Client, body: bytes) -> None:
    """The first twenty of the last 24 hours."""
    answer = await client.post("/systemevent", data=body, headers=bearer("gina"))
    listing = await answer.json()
    assert (listing["skip"], listing["take"], listing["total"]) == (0, 20, 30)
    assert [event["id"] for event in listing["events"]] == list(range(1, 21))


@pytest.mark.parametrize("take", [1, 7, 30, 100])
async def test_pages_are_the_whole_list_in_order(client: Client, take: int) -> None:
    """Each says where it is in it; a page beyond the end is empty and still tells the total."""
    seen = []
    for skip in range(0, 30, take):
        body = await page(client, "gina", skip=skip, take=take)
        assert (body["total"], body["skip"], body["take"]) == (30, skip, take)
        seen += [event["id"] for event in body["events"]]
    assert seen == list(range(1, 31))
    for skip in (30, 31, 2**63 - 1):
        body = await page(client, "gina", skip=skip, take=take)
        assert body == {"events": [], "total": 30, "skip": skip, "take": take}


async def test_ties_stay_in_order_across_pages(client: Client) -> None:
    """Events of one moment come by id, highest first, each on one page only."""
    filters = {"contextId": "tie", "to_timestamp": "2021-01-01T00:00Z", "take": 1}
    seen = [(await page(client, "ivan", skip=n, **filters))["events"][0]["id"] for n in range(3)]
    assert seen == [9, 8, 7]


async def test_the_badge_counts_what_the_caller_has_not_read(client: Client) -> None:
    """With showUnread true and take 1, the total follows marking and unmarking at once."""

    async def badge(user: str) -> int:
        return int((await page(client, user, showUnread=True, take=1))["total"])

    everything = len(SEEN["alice"])
    assert await badge("alice") == everything
    first, second = (event["id"] for event in SEEN["alice"][:2])
    await mark(client, "alice", first, second)
    assert await badge("alice") == everything - 2
    assert await badge("owner") == 20
    await mark(client, "alice", second, method="DELETE")
    assert await badge("alice") == everything - 1
    await mark(client, "alice", *range(1, 21))
    assert await badge("alice") == 0


async def test_show_unread_is_the_callers_own_read_state(client: Client) -> None:
    """In each event; as a filter true leaves out what is read, false and null do not."""
    await mark(client, "owner", 1, 2)
    await mark(client, "admin", 3)
    await mark(client, "gina", 4)
    events = (await page(client, take=100))["events"]
    assert [event["id"] for event in events if not event["showUnread"]] == [1, 2]
    assert await listed(client, showUnread=True) == list(range(3, 21))
    for everything in (False, None):
        assert await listed(client, showUnread=everything) == list(range(1, 21))
    assert await listed(client, showUnread=True, userId="bob", event=1) == [4, 7, 10, 13, 16, 19]
    await mark(client, "owner", 1, 2, method="DELETE")
    assert await listed(client, showUnread=True) == list(range(1, 21))


async def test_read_state_does_not_follow_a_user_to_another_organization(
    client: Client, database: Sandbox
) -> None:
    """An event of the same id there is unread."""
    await database.owner.execute(
        "insert into users values ('mover', 'acme', 'Mo Mover', 'mo@example.org', 254)"
    )
    await mark(client, "mover", 1)
    await database.owner.execute("update users set organization_id = 'globex' where id = 'mover'")
    events = (await page(client, "mover", take=100))["events"]
    assert {event["orgId"] for event in events} == {"globex"}
    assert all(event["showUnread"] for event in events)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body is not a JSON object"),
        (b'{"userId": "\xff"}', "the body is not valid UTF-8"),
        (b'{"userId": "\\ud800"}', "userId: holds a NUL or a lone surrogate"),
        (b'{"take": 0}', "take: not an integer from 1 to 100"),
    ],
)
async def test_a_body_that_cannot_be_used_is_refused(
    client: Client, body: bytes, message: str
) -> None:
    """400, and the message says why; tests/unit/test_filters.py has all reasons."""
    answer = await client.post("/systemevent", data=body, headers=bearer())
    assert (answer.status, await refused(answer)) == (400, message)


async def test_unknown_keys_are_ignored(client: Client) -> None:
    answer = await client.post("/systemevent", data=b'{"x": 1e400, "take": 1}', headers=bearer())
    assert answer.status == 200
    assert len((await answer.json())["events"]) == 1


@pytest.mark.parametrize("body", [b"{}", b"", b"[]", b"{", b'{"take": 0}', b"\xff"])
@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "authentication required"),
        ({"Authorization": "Bearer x.y.z"}, 401, "invalid token"),
        (bearer("stranger", exp=1), 401, "token expired"),
        (bearer("stranger"), 401, "user not found"),
        (bearer("nobody"), 403, "user not associated with an organization"),
        (bearer("nobody", orgId="acme"), 403, "user not associated with an organization"),
    ],
)
async def test_who_you_are_comes_before_what_you_said(
    shared: Shared, headers: dict[str, str], status: int, message: str, body: bytes
) -> None:
    """401 for a bad token, then for an unknown user, then 403, whatever the body is."""
    answer = await shared.client.post("/systemevent", data=body, headers=headers)
    assert (answer.status, await refused(answer)) == (status, message)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


async def test_the_body_is_bounded_as_for_marking(client: Client) -> None:
    """413 for what is too large, 415 for what has an encoding."""
    answer = await client.post("/systemevent", data=b" " * 400_000, headers=bearer())
    assert answer.status == 413
    await refused(answer)
    headers = {**bearer(), "Content-Encoding": "identity"}
    answer = await client.post("/systemevent", data=b"{}", headers=headers)
    assert answer.status == 415
    await refused(answer)


async def test_a_list_changes_nothing(client: Client, database: Sandbox) -> None:
    await listed(client, "alice")
    await listed(client, "alice", showUnread=True)
    assert await database.read_rows() == set()


async def test_the_window_is_the_last_24_hours_at_any_time(
    client: Client, database: Sandbox
) -> None:
    """What is to come belongs to it as well: the clocks of writers differ."""
    moment = datetime.now(UTC) + timedelta(minutes=5)
    await database.owner.execute(
        "insert into system_event_log values ('initech', 3, $1, 0, 0, 'ahead', 'ivan')", moment
    )
    try:
        assert await listed(client, "ivan") == [3, 2]
    finally:
        await database.owner.execute("delete from system_event_log where context_id = 'ahead'")


@pytest.fixture
async def add(database: Sandbox) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Add an event of acme with a time, as number 9000, for the test alone."""

    async def add(time: str) -> None:
        await database.owner.execute(
            "insert into system_event_log "
            "values ('acme', 9000, $1::text::timestamptz, 1, 0, 'x', 'alice')",
            time,
        )

    yield add
    await database.owner.execute("delete from system_event_log where id = 9000")


async def test_a_listed_time_finds_its_event_again(
    client: Client, add: Callable[[str], Awaitable[None]]
) -> None:
    """As either end of the window, though answers have only milliseconds."""
    await add("2020-01-01 00:00:00.123999Z")
    time = "2020-01-01T00:00:00.123Z"
    answer = await page(client, from_timestamp=time, to_timestamp=time)
    assert [(event["id"], event["timestamp"]) for event in answer["events"]] == [(9000, time)]


@pytest.mark.parametrize("time", ["infinity", "-infinity"])
async def test_an_event_out_of_time_is_not_listed(
    client: Client, add: Callable[[str], Awaitable[None]], time: str
) -> None:
    """Infinity is no date."""
    await add(time)
    for window in (
        {"from_timestamp": "0001-01-01T00:00:00Z"},
        {"to_timestamp": "9999-12-31T23:59:59Z"},
    ):
        assert (await page(client, **window))["total"] == 20


async def test_who_moved_away_has_no_name(client: Client, database: Sandbox) -> None:
    """Nobody sees another organization's users, not even those who were in their own."""
    move = "update users set organization_id = $1 where id = 'bob'"
    await database.owner.execute(move, "globex")
    try:
        events = (await page(client, take=100, userId="bob"))["events"]
    finally:
        await database.owner.execute(move, "acme")
    assert [event["id"] for event in events] == [1, 4, 7, 10, 13, 16, 19]
    assert {(event["userName"], event["userEmail"]) for event in events} == {("", "")}


@pytest.mark.parametrize("user", SEEN)
@pytest.mark.parametrize("max_scan", [1, 2, 7, 19])
async def test_a_list_looks_at_the_newest_events_and_says_where_it_stopped(
    start: Start, user: str, max_scan: int
) -> None:
    """What it has not looked at is listed by going on from there, and nothing is left out."""
    client = await start(LIMITS_MAX_SCAN=str(max_scan))
    seen: dict[int, Event] = {}
    times: list[str] = []
    filters: dict[str, object] = {"take": 100, "from_timestamp": "2000-01-01T00:00:00Z"}
    while True:
        answer = await client.post("/systemevent", json=filters, headers=bearer(user))
        body = await answer.json()
        assert body["total"] == len(body["events"])
        seen.update({event["id"]: event for event in body["events"]})
        if "more" not in body:
            assert list(body) == ["events", "total", "skip", "take"]
            break
        assert list(body) == ["events", "total", "skip", "take", "more", "until"]
        assert body["more"] is True
        times.append(body["until"])
        # The oldest one looked at is in the next list again: where it is all, look behind it.
        filters["to_timestamp"] = body["until"] if max_scan > 1 else before(body["until"])
    assert list(seen) == [event["id"] for event in SEEN[user]]
    assert times == sorted(times, reverse=True)
    assert len(times) >= 20 // max_scan - 1


def before(time: str) -> str:
    """A millisecond before a time."""
    return (datetime.fromisoformat(time) - timedelta(milliseconds=1)).isoformat()


@pytest.mark.parametrize("max_scan", ["0", "20", "50000"])
async def test_a_window_within_the_bound_is_listed_as_ever(start: Start, max_scan: str) -> None:
    """0 means no bound; and neither key is there where all was looked at."""
    client = await start(LIMITS_MAX_SCAN=max_scan)
    assert (await page(client))["total"] == 20


async def test_the_bound_counts_what_is_looked_at(start: Start) -> None:
    """And not what is found: filters and pages are of the newest three, bob's 1 among them."""
    client = await start(LIMITS_MAX_SCAN="3")
    for filters, total, ids in (
        ({}, 3, [1, 2, 3]),
        ({"take": 1, "skip": 2}, 3, [3]),
        ({"skip": 3}, 3, []),
        ({"userId": "bob"}, 1, [1]),
        ({"contextId": "thing-4"}, 0, []),
    ):
        answer = await client.post("/systemevent", json=filters, headers=bearer("owner"))
        body = await answer.json()
        assert body["more"] is True
        assert (body["total"], [event["id"] for event in body["events"]]) == (total, ids)


async def test_long_details_are_encoded_in_many_turns_of_the_loop(
    client: Client, database: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much a list has in all, others have their turn in between."""
    long = 400_000
    theirs = "update system_event_log set json_data = {} where organization_id = 'globex'"
    await database.owner.execute(theirs.format(f"repeat('x', {long})"))
    encode, most, size = msgspec.json.encode, 0, 0

    def encoded(value: object) -> bytes:
        nonlocal most, size
        text = encode(value)
        size += len(text)
        most = max(most, size)
        return text

    async def turns() -> None:
        nonlocal size
        while True:
            await asyncio.sleep(0)
            size = 0

    monkeypatch.setattr(msgspec.json, "encode", encoded)
    watch = asyncio.create_task(turns())
    for body in ({}, {"cursor": None}):
        answer = await client.post("/systemevent", json=body, headers=bearer("gina"))
        events = (await answer.json())["events"]
        assert [len(event["jsonData"]) for event in events] == [long] * 20
    watch.cancel()
    await database.owner.execute(theirs.format("null"))
    assert most < 3 * long
