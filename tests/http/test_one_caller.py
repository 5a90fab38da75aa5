"""What reads share: each caller has a bounded part of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.conftest import Sandbox, Start
from tests.http.test_count import count
from tests.http.test_list import SEEN, page
from tests.support.shared import Client

pytestmark = pytest.mark.single("advisory lock that all of its nodes share")

# Where a lock is held, lists of alice wait for it, and nobody else's.
SLOW = """
alter table workspace_user rename to membership;
create function waits() returns boolean language sql volatile
  as 'select pg_advisory_lock_shared(1) is not null and pg_advisory_unlock_shared(1)';
create view workspace_user as select * from membership where user_id <> 'alice' or waits();
grant select on workspace_user to public
"""
WAITING = "select count(*) from pg_locks where locktype = 'advisory' and not granted"


MORE = ("x1", "x2", "x3")
SLOW_FOR_ALL = SLOW.replace("<> 'alice'", "not in ('alice', 'x1', 'x2', 'x3')")


async def add_more(database: Sandbox, organization: str) -> None:
    """Add users whose lists wait as well."""
    for user in MORE:
        await database.owner.execute(
            "insert into users values ($1::text, $2::text, 'X', 'x@acme.example')",
            user,
            organization,
        )
        await database.owner.execute("insert into workspace_user values ('w1', $1::text)", user)


async def wait_for(database: Sandbox, lists: int) -> None:
    """Wait until so many lists are under way, at least."""
    while await database.owner.fetchval(WAITING) < lists:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def slow_lists(
    client: Client, database: Sandbox, slow: str, users: Sequence[str], at_once: int
) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    """Lists of these users, `at_once` of them under way; none ends while the context lasts."""
    await database.owner.execute(slow)
    async with database.owner.transaction():
        await database.owner.execute("select pg_advisory_xact_lock(1)")
        lists = [asyncio.create_task(page(client, user)) for user in users]
        await wait_for(database, at_once)
        yield lists
        assert not any(task.done() for task in lists)
    await asyncio.gather(*lists)


async def test_slow_lists_of_one_caller_leave_connections_to_others(
    start: Start, database: Sandbox
) -> None:
    """Another caller's badge is answered while all of them are still under way."""
    client = await start(DATABASE_POOL_SIZE="4")
    async with slow_lists(client, database, SLOW, ["alice"] * 20, 2) as lists:
        badge = await page(client, "bob", showUnread=True, take=1)
        assert badge["total"] == len(SEEN["bob"])
        assert await database.owner.fetchval(WAITING) <= 2
    assert {task.result()["total"] for task in lists} == {len(SEEN["alice"])}


async def test_slow_lists_of_one_organization_leave_a_connection_to_others(
    start: Start, database: Sandbox
) -> None:
    """However many of its users ask; they go on as the first of them end."""
    client = await start(DATABASE_POOL_SIZE="4")
    await add_more(database, "acme")
    async with slow_lists(client, database, SLOW_FOR_ALL, ("alice", *MORE) * 5, 3):
        async with asyncio.timeout(5):
            assert (await page(client, "gina"))["total"] == 30
        await wait_for(database, 3)  # again: one may have run into its limit, and be repeated
        assert await database.owner.fetchval(WAITING) == 3


async def test_counts_do_not_wait_for_the_lists_of_many_callers(
    start: Start, database: Sandbox
) -> None:
    """Each within what caller and organization may have; they take all connections for lists."""
    client = await start(DATABASE_POOL_SIZE="4")
    await add_more(database, "globex")
    async with slow_lists(client, database, SLOW_FOR_ALL, ("alice", *MORE) * 2, 4):
        async with asyncio.timeout(5):
            assert (await count(client, "bob"))["count"] == len(SEEN["bob"])
