"""POST /systemevent/read/all: all that the caller may see and the filters match, in chunks."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Sandbox, bearer
from tests.http.test_list import INITECH, SEEN, listed, mark
from tests.support.cluster import Cluster
from tests.support.shared import Client, Shared, clean, refused, serve

PATH = "/systemevent/read/all"


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service with a third organization."""
    async with serve(cluster) as shared:
        await shared.database.owner.execute(INITECH)
        yield shared


database, client = clean()


async def mark_everything(client: Client, user: str = "owner", /, **body: object) -> int:
    """Mark all; the status, and the answer checked."""
    answer = await client.post(PATH, json=body, headers=bearer(user))
    if answer.status == 200:
        assert await answer.json() == {"success": True}
    else:
        await refused(answer)
    return answer.status


async def read_by(database: Sandbox, user: str) -> set[int]:
    """What a user has read."""
    return {event for _, reader, event in await database.read_rows() if reader == user}


@pytest.mark.parametrize("user", SEEN)
async def test_all_that_the_caller_sees_is_marked(
    client: Client, database: Sandbox, user: str
) -> None:
    """And nothing else, for nobody else; the badge is at nothing."""
    assert await mark_everything(client, user) == 200
    assert await database.read_rows() == {("acme", user, event["id"]) for event in SEEN[user]}
    assert await listed(client, user, showUnread=True) == []


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b'{"x": 1}', b'{"upTo": null}'])
async def test_an_empty_body_means_the_last_24_hours(
    client: Client, database: Sandbox, body: bytes
) -> None:
    """As for a list."""
    answer = await client.post(PATH, data=body, headers=bearer("ivan"))
    assert answer.status == 200
    assert await read_by(database, "ivan") == {2}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"userId": "alice"}, {3, 6, 9, 12, 15, 18}),
        ({"userId": "alice", "event": 0, "workspaceId": "w2"}, {6, 18}),
        ({"contextId": "thing-5"}, {5}),
        ({"context": 3}, {3, 17}),
        ({"userId": "gina"}, set()),
        ({"to_timestamp": "2020-01-01T00:00:00Z"}, set()),
        ({"from_timestamp": "2020-01-01T00:00:00Z"}, set(range(1, 21))),
    ],
)
async def test_filters_narrow_it(
    client: Client, database: Sandbox, filters: dict[str, Any], ids: set[int]
) -> None:
    assert await mark_everything(client, "owner", **filters) == 200
    assert await read_by(database, "owner") == ids


@pytest.mark.parametrize("until", ["2020-02-29T12:00:00.123Z", "2020-02-29T12:00:00.1238Z"])
async def test_a_window_is_that_of_a_list(client: Client, database: Sandbox, until: str) -> None:
    """All of the last millisecond, where it is a whole one."""
    assert await mark_everything(client, "ivan", to_timestamp=until) == 200
    assert await read_by(database, "ivan") == set(await listed(client, "ivan", to_timestamp=until))


@pytest.mark.parametrize(
    ("user", "up_to", "ids"),
    [
        ("owner", 5, set(range(5, 21))),
        ("owner", 5.0, set(range(5, 21))),
        ("owner", 1, set(range(1, 21))),
        ("owner", 20, {20}),
        ("alice", 5, {6, 8, 9, 12, 15, 16, 18, 20}),  # which alice does not see
        ("ivan", 5, set()),  # unknown, between others
        ("owner", 21, set()),  # foreign: of globex
        ("owner", 2**63 - 1, set()),  # unknown
        ("ivan", 8, {8, 7, 2**53 + 1, 2**63 - 1}),  # but not 9, of the same moment
        ("ivan", 2**63 - 1, {2**63 - 1}),
    ],
)
async def test_up_to_leaves_what_is_newer(
    client: Client, database: Sandbox, user: str, up_to: float, ids: set[int]
) -> None:
    """In the list's order; of an unknown or foreign event nothing is marked, and nothing said."""
    since = "2018-01-01T00:00:00Z"
    assert await mark_everything(client, user, upTo=up_to, from_timestamp=since) == 200
    assert await read_by(database, user) == ids


async def test_what_commits_late_stays_unread(client: Client, database: Sandbox) -> None:
    """Rows are marked, and no line is drawn: nobody can have seen it, though it is before upTo."""
    async with database.owner.transaction():
        await database.owner.execute(
            "insert into system_event_log "
            "values ('acme', 500, now() - interval '10 hours', 0, 0, '', 'bob')"
        )
        assert await mark_everything(client, "owner", upTo=5) == 200
    try:
        assert await listed(client, "owner", showUnread=True) == [1, 2, 3, 4, 500]
    finally:
        await database.owner.execute("delete from system_event_log where id = 500")


@pytest.mark.parametrize("value", [-1, 0, 0.5, 2**63, 1e300, "1", True, [], {}])
async def test_what_is_no_event_id_is_refused_by_name(client: Client, value: object) -> None:
    answer = await client.post(PATH, json={"upTo": value}, headers=bearer())
    assert answer.status == 400
    assert (await refused(answer)).startswith("upTo: ")


async def test_what_a_list_alone_is_asked_does_not_matter(
    client: Client, database: Sandbox
) -> None:
    """Whatever it is."""
    beside = {"skip": 5, "take": 1, "cursor": "x", "showUnread": "no"}
    assert await mark_everything(client, "owner", **beside) == 200
    assert await read_by(database, "owner") == set(range(1, 21))


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"upTo": 0}', b'{"upTo": 5}', b"\xff"])
@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "authentication required"),
        (bearer("stranger"), 401, "user not found"),
        (bearer("nobody"), 403, "user not associated with an organization"),
    ],
)
async def test_who_you_are_comes_before_what_you_said(
    client: Client, headers: dict[str, str], status: int, message: str, body: bytes
) -> None:
    answer = await client.post(PATH, data=body, headers=headers)
    assert (answer.status, await refused(answer)) == (status, message)


async def test_the_first_time_is_kept(client: Client, database: Sandbox) -> None:
    """What is read is passed over, and no row is written."""
    await mark(client, "owner", 3, 4)
    before = {tuple(row) for row in await database.owner.fetch("table system_event_read")}
    for _ in range(2):
        assert await mark_everything(client) == 200
    after = {tuple(row) for row in await database.owner.fetch("table system_event_read")}
    assert before <= after
    assert len(after) == 20
