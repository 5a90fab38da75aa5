"""POST /systemevent/count: what is unread, for the badge."""

from typing import Any

import pytest

from tests.conftest import Sandbox, Start, bearer
from tests.http.test_list import SEEN, mark, page
from tests.support.shared import Client, refused

PATH = "/systemevent/count"


async def count(client: Client, user: str = "owner", /, **filters: object) -> Any:
    """The whole answer."""
    answer = await client.post(PATH, json=filters, headers=bearer(user))
    assert answer.status == 200, await answer.text()
    return await answer.json()


@pytest.mark.parametrize("user", SEEN)
async def test_it_counts_what_the_list_calls_unread(client: Client, user: str) -> None:
    """Whatever the filters are; skip and take do not matter."""
    await mark(client, user, 3, 4, 7, 12)
    for filters in (
        {},
        {"context": 3},
        {"event": 1, "userId": "alice"},
        {"workspaceId": "w1"},
        {"contextId": "thing-8"},
        {"from_timestamp": "2000-01-01T00:00:00Z"},
        {"to_timestamp": "2000-01-01T00:00:00Z"},
    ):
        unread = (await page(client, user, showUnread=True, take=1, **filters))["total"]
        expected = {"count": unread, "more": False}
        assert await count(client, user, **filters) == expected
        assert await count(client, user, **filters, skip=5, take=1, showUnread=False) == expected


@pytest.mark.parametrize("bound", [1, 19, 20, 21])
async def test_it_looks_at_the_newest_events(start: Start, bound: int) -> None:
    """And says whether there are older ones; what is read is looked at as well."""
    more = bound < 20
    client = await start(LIMITS_MAX_COUNT=str(bound))
    assert await count(client) == {"count": min(bound, 20), "more": more}
    await mark(client, "owner", 1)  # the newest
    assert await count(client) == {"count": min(bound, 20) - 1, "more": more}


async def test_refusals_are_those_of_a_list(client: Client) -> None:
    """Who you are comes before what you said, and the message names the field."""
    for headers, status, message in (
        ({}, 401, "authentication required"),
        (bearer("stranger"), 401, "user not found"),
        (bearer("nobody"), 403, "user not associated with an organization"),
        (bearer(), 400, "context: "),
    ):
        answer = await client.post(PATH, json={"context": "x"}, headers=headers)
        assert answer.status == status
        assert (await refused(answer)).startswith(message)


async def test_nothing_is_written(client: Client, database: Sandbox) -> None:
    await count(client)
    assert await database.read_rows() == set()
