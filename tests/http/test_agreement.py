"""List, pages, count, mark-all and the views agree with one model of who sees what.

On random data. The rule for who sees what stands in each statement, since its bound has to come
before it.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.endpoints import mark_all
from tests.conftest import Service, bearer, psql
from tests.support.cluster import Cluster
from tests.support.shared import Client, serve

# Every kind of user, event and membership, drawn at random, within few names so that they meet.
# Events of half an hour, many at the same moment or beside it, and some that are older than a day.
ANYTHING = """
select setseed(0.1);
truncate users, workspace_user, system_event_log;
insert into users
select
  'r' || n, (array['acme', 'globex', 'globex'])[1 + floor(random() * 3)], 'name', 'mail',
  (array[0, 1, 2, 254, 255])[1 + floor(random() * 5)]
from generate_series(1, 30) n;
insert into workspace_user
select distinct 'w' || floor(random() * 8), 'r' || 1 + floor(random() * 30)
from generate_series(1, 60) n;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
select
  (array['acme', 'globex'])[1 + n % 2], n / 2 + 1,
  date_trunc('minute', now()) - case when n % 10 = 0 then interval '2 days' else '0 s' end
    - floor(random() * 20) * interval '1 minute'
    + (array[0, 0, 1, 999, 1000])[1 + floor(random() * 5)] * interval '1 microsecond',
  floor(random() * 2), floor(random() * 2), 'thing' || floor(random() * 3),
  'r' || 1 + floor(random() * 30),
  case when random() < 0.7 then 'w' || floor(random() * 8) end
from generate_series(0, 119) n;
"""
FEW = 7  # events that the bounded service looks at
FILTERS: dict[str, tuple[str, list[Any]]] = {
    "contextId": ("context_id", ["thing0", "thing1", "thing9"]),
    "context": ("context", [0, 1, 9]),
    "event": ("event", [0, 1, 9]),
    "userId": ("user_id", [f"r{n}" for n in range(1, 31)]),
    "workspaceId": ("workspace_id", ["w0", "w1", "w2", "w9"]),
}
Row = Any  # of asyncpg


@dataclass
class World:
    """Two services on one database, one of them with bounds that bite, and what is in it."""

    whole: Client
    bounded: Client
    owner: "asyncpg.Connection[asyncpg.Record]"
    users: list[Row] = field(default_factory=list)
    members: set[tuple[str, str]] = field(default_factory=set)
    events: list[Row] = field(default_factory=list)  # in the list's order

    async def load(self) -> None:
        """Read the tables."""
        self.users = await self.owner.fetch("select * from users order by id")
        self.members = {
            (row["user_id"], row["workspace_id"])
            for row in await self.owner.fetch("table workspace_user")
        }
        self.events = await self.owner.fetch(
            'select * from system_event_log order by "timestamp" desc, id desc'
        )

    def sees(self, user: Row, event: Row) -> bool:
        """The rule: owner and administrators all, others their own and their workspaces'."""
        return event["organization_id"] == user["organization_id"] and (
            user["org_role"] in (254, 255)
            or event["user_id"] == user["id"]
            or (user["id"], event["workspace_id"]) in self.members
        )


@pytest.fixture(scope="module")
async def world(cluster: Cluster) -> AsyncIterator[World]:
    """Made once; each example marks what it needs."""
    async with serve(cluster, LIMITS_MAX_COUNT="100") as shared:
        psql(shared.database.owner_url, ANYTHING)
        few = {f"LIMITS_MAX_{what}": str(FEW) for what in ("SCAN", "COUNT")}
        async with TestClient(Service(shared.database.url, few)) as bounded:
            world = World(shared.client, bounded, shared.database.owner)
            await world.load()
            yield world


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """So that a mark-all takes several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mark_all, "CHUNK", 3)
        patch.setattr(mark_all, "SCAN", FEW)
        yield


@dataclass
class Question:
    """What is asked, drawn before it is known what there is."""

    user: int
    filters: dict[str, Any]
    window: tuple[tuple[int, int] | None, tuple[int, int] | None]  # an event, and us beside it
    only_unread: bool
    take: int
    read: set[int]
    up_to: int | None

    def body(self, world: World) -> dict[str, Any]:
        """The filters, as JSON."""
        times = [
            world.events[end[0]]["timestamp"] + timedelta(microseconds=end[1]) if end else None
            for end in self.window
        ]
        if all(times):
            times.sort()
        names = ("from_timestamp", "to_timestamp")
        texts = {name: time.isoformat() for name, time in zip(names, times, strict=True) if time}
        return self.filters | texts

    def in_window(self, body: dict[str, Any], event: Row) -> bool:
        """Whether an event is in it."""
        times = {end: body.get(f"{end}_timestamp") for end in ("from", "to")}
        if not any(times.values()):
            return bool(
                event["timestamp"] > datetime.now(tz=event["timestamp"].tzinfo) - timedelta(days=1)
            )
        since, until = (text and datetime.fromisoformat(text) for text in times.values())
        whole = until and until.microsecond % 1000 == 0
        if until:
            until += timedelta(milliseconds=1) if whole else timedelta(microseconds=1)
        return not (since and event["timestamp"] < since) and not (
            until and event["timestamp"] >= until
        )


ends = st.none() | st.tuples(st.integers(0, 119), st.sampled_from([0, -1, 1, -1000, -70_000_000]))
questions = st.builds(
    Question,
    st.integers(0, 29),
    st.dictionaries(st.sampled_from(list(FILTERS)), st.integers(0, 2), max_size=2).map(
        lambda drawn: {name: FILTERS[name][1][n] for name, n in drawn.items()}
    ),
    st.tuples(ends, ends),
    st.booleans(),
    st.integers(4, 30),
    st.sets(st.integers(1, 60), max_size=60),
    st.none() | st.integers(1, 62),
)


async def ask(client: Client, path: str, user: str, body: dict[str, Any]) -> Any:
    """The answer to a request."""
    answer = await client.post(path, json=body, headers=bearer(user))
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def by_skip(client: Client, user: str, body: dict[str, Any]) -> tuple[list[Any], Any]:
    """All events of a list, and its last answer."""
    events: list[Any] = []
    while True:
        page = await ask(client, "/systemevent", user, body | {"skip": len(events)})
        events += page["events"]
        if not page["events"]:
            assert page["total"] == len(events)
            return events, page


async def by_cursor(client: Client, user: str, body: dict[str, Any]) -> list[Any]:
    """All events of all pages."""
    events: list[Any] = []
    cursor = None
    while True:
        page = await ask(client, "/systemevent", user, body | {"cursor": cursor})
        events += page["events"]
        cursor = page["nextCursor"]
        if cursor is None:
            return events


async def marks(world: World) -> dict[tuple[str, str, int], datetime]:
    """What is read, and since when."""
    rows = await world.owner.fetch("table system_event_read")
    return {tuple(row)[:3]: row["read_at"] for row in rows}


async def prepare(world: World, user: Row, read: set[int]) -> None:
    """Let the user, and some others, have read events of these numbers."""
    await world.owner.execute("truncate system_event_read")
    await world.owner.execute(
        "insert into system_event_read select u.organization_id, u.id, n, '2026-01-01' "
        "from users u, unnest($1::bigint[]) n where u.id = $2 or u.id in ('r1', 'r2')",
        list(read),
        user["id"],
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(questions)
async def test_all_agree_with_the_model(world: World, question: Question) -> None:
    """Whoever asks for whatever, and whatever is read."""
    user = world.users[question.user]
    name, body = user["id"], question.body(world)
    await prepare(world, user, question.read)
    window = [
        event
        for event in world.events
        if event["organization_id"] == user["organization_id"] and question.in_window(body, event)
    ]

    def found(events: list[Row], *, only_unread: bool) -> list[int]:
        return [
            event["id"]
            for event in events
            if world.sees(user, event)
            and all(event[FILTERS[key][0]] == value for key, value in question.filters.items())
            and not (only_unread and event["id"] in question.read)
        ]

    # The views
    for view, caller, only_unread in (("visible", "viewer_id", False), ("unread", "user_id", True)):
        query = f"select event_id from system_event_{view} where {caller} = $1"
        seen = {row["event_id"] for row in await world.owner.fetch(query, name)}
        assert seen == {
            event["id"]
            for event in world.events
            if world.sees(user, event) and not (only_unread and event["id"] in question.read)
        }
    # Lists and pages
    part = body | {"showUnread": question.only_unread, "take": question.take}
    expected = found(window, only_unread=question.only_unread)
    events, answer = await by_skip(world.whole, name, part)
    assert [event["id"] for event in events] == expected
    assert "more" not in answer
    assert all(event["showUnread"] == (event["id"] not in question.read) for event in events)
    assert await by_cursor(world.whole, name, part) == events
    assert await by_cursor(world.bounded, name, part) == events
    few, answer = await by_skip(world.bounded, name, part)
    assert [event["id"] for event in few] == found(window[:FEW], only_unread=question.only_unread)
    assert ("more" in answer) == (len(window) > FEW)
    # Counts
    for client, looked in ((world.whole, window), (world.bounded, window[:FEW])):
        assert await ask(client, "/systemevent/count", name, body) == {
            "count": len(found(looked, only_unread=True)),
            "more": len(looked) < len(window),
        }
    # Mark-all
    before = await marks(world)
    if question.up_to is not None:
        body["upTo"] = question.up_to
        own = [e for e in world.events if e["organization_id"] == user["organization_id"]]
        newer = {e["id"] for e in takewhile(lambda e: e["id"] != question.up_to, own)}
        window = [event for event in window if event["id"] not in newer]
    assert await ask(world.whole, "/systemevent/read/all", name, body) == {"success": True}
    wanted = {(user["organization_id"], name, n) for n in found(window, only_unread=False)}
    after = await marks(world)
    assert after.keys() == before.keys() | wanted
    assert all(after[row] == read_at for row, read_at in before.items())
