"""POST /systemevent with a cursor: pages that do not shift."""

import base64
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.endpoints.cursor import encode
from tests.conftest import Sandbox, Start, bearer
from tests.http.test_list import ACME, INITECH, SEEN, listed, mark
from tests.support.cluster import Cluster
from tests.support.shared import Client, Shared, clean, refused, serve

DELETE = "delete from system_event_log where organization_id = 'initech'"
YEARS = {"from_timestamp": "2000-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service with a third organization."""
    async with serve(cluster) as shared:
        await shared.database.owner.execute(INITECH)
        yield shared


database, client = clean()


async def add(database: Sandbox, organization: str, event_id: int, time: str) -> None:
    """Add an event; `time` is an expression in SQL."""
    user = {"initech": "ivan", "globex": "gina"}[organization]
    await database.owner.execute(
        f"insert into system_event_log select $1::text, $2::bigint, {time}, 0, 0, '', $3::text",
        organization,
        event_id,
        user,
    )


@contextlib.asynccontextmanager
async def added(
    database: Sandbox, organization: str, *events: tuple[int, str]
) -> AsyncIterator[None]:
    """Add events, each with its id and time, for as long as the context lasts."""
    for event_id, time in events:
        await add(database, organization, event_id, time)
    yield
    await database.owner.execute(
        "delete from system_event_log where organization_id = $1 and id = any ($2)",
        organization,
        [event_id for event_id, _ in events],
    )


async def next_page(client: Client, user: str, cursor: str | None, /, **filters: object) -> Any:
    """The answer to a cursor."""
    answer = await client.post(
        "/systemevent", json={**filters, "cursor": cursor}, headers=bearer(user)
    )
    assert answer.status == 200, await answer.text()
    body = await answer.json()
    assert list(body) == ["events", "take", "nextCursor"]
    assert len(body["events"]) <= body["take"]
    return body


async def pages(client: Client, user: str = "owner", /, **filters: object) -> list[list[Any]]:
    """The events of all pages, from the first to the last."""
    found, cursor = [], None
    while True:
        body = await next_page(client, user, cursor, **filters)
        found.append(body["events"])
        cursor = body["nextCursor"]
        if cursor is None:
            return found


def flat(pages: list[list[Any]]) -> list[int]:
    """The ids on all of them."""
    return [event["id"] for page in pages for event in page]


@pytest.mark.parametrize("take", [1, 3, 19, 20, 100])
@pytest.mark.parametrize("user", SEEN)
async def test_the_pages_are_the_whole_list(client: Client, user: str, take: int) -> None:
    """Each event once, in the list's order, with all fields; all pages but the last are full."""
    found = await pages(client, user, take=take)
    events = [event for page in found for event in page]
    for event in events:
        assert event.pop("timestamp")
    assert events == SEEN[user]
    assert all(len(page) == take for page in found[:-1])


async def test_without_take_a_page_has_twenty(client: Client) -> None:
    assert [len(page) for page in await pages(client, "gina")] == [20, 10]


async def test_nothing_comes_twice_or_is_left_out_whatever_happens_meanwhile(
    client: Client, database: Sandbox
) -> None:
    """Events arrive, some are marked or unmarked, and the one at the end of the page is deleted."""
    expected = await listed(client, "ivan", **YEARS)
    await mark(client, "ivan", expected[3])
    filters = {**YEARS, "take": 1}
    found, cursor = [], None
    for number in range(len(expected)):
        body = await next_page(client, "ivan", cursor, **filters)
        (event,), cursor = body["events"], body["nextCursor"]
        found.append(event["id"])
        await add(database, "initech", 1000 + number, "now()")
        await mark(client, "ivan", event["id"])
        await mark(client, "ivan", expected[3], method="DELETE")
        await database.owner.execute(f"{DELETE} and id = $1", event["id"])
    try:
        assert found == expected
        assert cursor is None
    finally:
        await database.owner.execute(DELETE)
        await database.owner.execute(INITECH.partition(";")[2])


async def test_what_is_marked_meanwhile_shifts_no_unread_page(client: Client) -> None:
    """Who clears a page and asks for the next one misses nothing."""
    found, cursor = [], None
    while True:
        body = await next_page(client, "owner", cursor, showUnread=True, take=3)
        ids = [event["id"] for event in body["events"]]
        found += ids
        if ids:
            await mark(client, "owner", *ids)
        cursor = body["nextCursor"]
        if cursor is None:
            break
    assert found == [event["id"] for event in ACME]
    assert await pages(client, "owner", showUnread=True) == [[]]


async def test_the_first_page_fixes_the_window(client: Client, database: Sandbox) -> None:
    """What was of the last 24 hours then is on a later page, though it is older by now."""
    cursor = (await next_page(client, "gina", None, take=1))["nextCursor"]
    async with added(database, "globex", (99, "clock_timestamp() - interval '24 hours'")):
        assert 99 not in await listed(client, "gina")
        ids = []
        while cursor:
            body = await next_page(client, "gina", cursor, take=10)
            ids += [event["id"] for event in body["events"]]
            cursor = body["nextCursor"]
        assert ids == [*range(2, 31), 99]


@pytest.mark.parametrize(
    "window",
    [
        YEARS,
        {"to_timestamp": "2020-12-31T23:59:59Z"},
        {"to_timestamp": "2020-02-29T12:00:00.123Z"},
        {"to_timestamp": "2020-02-29T12:00:00.1238Z"},
        {"from_timestamp": "2020-01-01T00:00Z", "to_timestamp": "2021-01-01T00:00Z"},
        {"from_timestamp": "2019-01-01T00:00Z", "to_timestamp": "2019-01-01T00:00Z"},
        {"contextId": "tie", **YEARS},
    ],
)
async def test_a_window_and_filters_are_those_of_a_list(
    client: Client, window: dict[str, str]
) -> None:
    """Ties by id, the ends inclusive, ids above 2^53 exact."""
    assert flat(await pages(client, "ivan", take=1, **window)) == await listed(
        client, "ivan", **window
    )


@pytest.mark.parametrize("max_scan", [1, 2, 7, 20, 21, 0])
@pytest.mark.parametrize("user", SEEN)
async def test_a_page_looks_at_so_many_events_and_the_next_goes_on(
    start: Start, user: str, max_scan: int
) -> None:
    """It may be short, or empty; none is the last before all was looked at."""
    client = await start(LIMITS_MAX_SCAN=str(max_scan))
    for take in (1, 5, 100):
        for filters in ({}, {"userId": "bob"}, {"contextId": "thing-20"}):
            found = await pages(client, user, take=take, **filters)
            wanted = [
                event["id"]
                for event in SEEN[user]
                if all(event[name] == text for name, text in filters.items())
            ]
            assert flat(found) == wanted
            if max_scan:
                assert len(found) >= 20 // max_scan


ODD = ["infinity", "-infinity", "4714-11-24 BC", "0044-03-15 BC", "20000-01-01", "294246-01-01"]


@pytest.mark.parametrize("time", ODD)
async def test_a_time_that_no_calendar_has_ends_nothing(
    client: Client, database: Sandbox, time: str
) -> None:
    """Drivers do not take every time that PostgreSQL has; infinity is no time."""
    async with added(database, "initech", (50, f"'{time}'")):
        for filters in (
            {"from_timestamp": "0001-01-01T00:00Z"},
            {"to_timestamp": "9999-01-01T00:00Z"},
        ):
            ids = flat(await pages(client, "ivan", take=1, **filters))
            assert ids == await listed(client, "ivan", **filters)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "null", 5, True, [], {}, "\0", encode(None, timedelta(), 1) + "=",
     base64.b64encode(b"[null,1,2,3,4]").decode(), "A" * 10_000, {"cursor": None}],
)  # fmt: skip
async def test_what_is_no_cursor_is_refused_by_name(client: Client, cursor: object) -> None:
    answer = await client.post("/systemevent", json={"cursor": cursor}, headers=bearer())
    assert answer.status == 400
    assert (await refused(answer)).startswith("cursor: ")


async def test_a_cursor_and_skip_contradict(client: Client) -> None:
    """But skip 0 is what it always is."""
    for cursor in (None, encode(None, timedelta(), 1)):
        body = {"cursor": cursor, "skip": 1}
        answer = await client.post("/systemevent", json=body, headers=bearer())
        assert answer.status == 400
        assert (await refused(answer)).startswith("skip: ")
    for skip in (0, None, 0.0):
        await next_page(client, "owner", None, skip=skip)


async def test_a_cursor_grants_nothing(client: Client) -> None:
    """One of another organization, or a made-up one, is a place in what the caller may see."""
    foreign = (await next_page(client, "gina", None, take=5))["nextCursor"]
    body = await next_page(client, "alice", foreign, take=100)
    assert [event["id"] for event in body["events"]] == [
        event["id"] for event in SEEN["alice"] if event["id"] > 5
    ]
    since = datetime(2000, 1, 1, tzinfo=UTC)
    made_up = encode(since, timedelta(days=100_000), 2**63 - 1)
    for user, seen in SEEN.items():
        body = await next_page(client, user, made_up, take=100)
        assert [event["id"] for event in body["events"]] == [event["id"] for event in seen]


@pytest.mark.parametrize("cursor", [None, encode(None, timedelta(), 1), "forged"])
async def test_who_you_are_comes_before_what_you_said(client: Client, cursor: object) -> None:
    for headers, status in (({}, 401), (bearer("stranger"), 401), (bearer("nobody"), 403)):
        answer = await client.post("/systemevent", json={"cursor": cursor}, headers=headers)
        assert answer.status == status
        await refused(answer)


async def test_an_event_that_commits_late_is_on_a_page_to_come(
    client: Client, database: Sandbox
) -> None:
    """Unless its place has been passed: then it is older than what the client has."""
    cursor = (await next_page(client, "gina", None, take=5))["nextCursor"]
    events = "system_event_log where organization_id = 'globex'"
    fifth = f'(select "timestamp" from {events} and id = 5)'
    late = [(90, f"{fifth} + interval '30 s'"), (91, f"{fifth} - interval '30 s'")]
    async with added(database, "globex", *late):
        body = await next_page(client, "gina", cursor, take=2)
        assert [event["id"] for event in body["events"]] == [91, 6]
