"""Connections: bounded in time and number, and left where their state is in doubt."""

import asyncio
import socket
from typing import Any

import aiohttp
import asyncpg
import pytest

from service import config
from service.database import Database
from service.errors import Unavailable
from tests.conftest import Database as Migrated
from tests.conftest import Service, Start, bearer

SLEEP = "select pg_sleep(30)"
COUNT = "select count(*) from pg_stat_activity where state = 'active' and query = $1::text"


def connections(url: str, size: int = 1, *, retry_slow: bool = True, **more: Any) -> Database:  # noqa: ANN401
    """Connections, with a statement_timeout of half a second where `more` has no other."""
    settings = config.Database(**{"statement_timeout": 0.5, **more})
    return Database(settings, url, size, {}, retry_slow=retry_slow)


def after(seconds: float) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def test_a_driver_that_forgets_its_time_limit_is_bounded(
    database: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that never ends is given up soon after its deadline, and its place is free again."""
    tried = connections(database.url)
    fetch = asyncpg.Connection.fetch

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Future()

    monkeypatch.setattr(asyncpg.Connection, "fetch", hang)
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await tried.fetch("select 1", deadline=after(0.1))
    monkeypatch.setattr(asyncpg.Connection, "fetch", fetch)
    assert await tried.fetch("select 1", deadline=after(30))
    await tried.close()


async def test_the_server_never_has_more_to_do_than_there_are_places(database: Migrated) -> None:
    """A list that is cut off by its deadline still runs there; its place is free when it ended."""
    tried = connections(database.url, 2, retry_slow=False)
    slow = [tried.fetch(SLEEP, deadline=after(0.1)) for _ in range(2)]
    for outcome in await asyncio.gather(*slow, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
    ((active,),) = await tried.fetch(COUNT, SLEEP, deadline=after(30))
    assert active < 2
    await tried.close()


async def test_a_mark_that_is_cut_off_makes_room_at_once(database: Migrated) -> None:
    """It waits for a lock, and is no work for the server."""
    tried = connections(database.url, statement_timeout=60.0)
    with pytest.raises(Unavailable):
        await tried.fetch(SLEEP, deadline=after(0.1))
    async with asyncio.timeout(30):
        assert await tried.fetch("select 1", deadline=after(30))
    await tried.close()


async def test_statements_that_are_lost_are_prepared_again(database: Migrated) -> None:
    """A connection behind a proxy may be given another session: it is left for a new one."""
    tried = connections(database.url)
    for _ in range(2):
        assert await tried.fetch("select 1", deadline=after(30))
    await tried.fetch("deallocate all", deadline=after(30))
    assert await tried.fetch("select 1", deadline=after(30))
    await tried.close()


async def test_a_host_that_never_answers_takes_its_share_of_the_time(
    start: Start, database: Migrated
) -> None:
    """A primary that is gone without a word, first of two: marks are served, and /ready says so."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        port = hole.getsockname()[1]
        url = database.url.replace("127.0.0.1:", f"127.0.0.1:{port},127.0.0.1:")
        client = await start(url, DATABASE_CONNECT_TIMEOUT="2")
        async with client.post("/systemevent/read", json={"id": 1}, headers=bearer()) as answer:
            assert answer.status == 200
        service = client.server
        assert isinstance(service, Service)
        async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
            assert answer.status == 200


async def test_nothing_is_kept_after_the_end(database: Migrated) -> None:
    """A statement that ends after close() does not leave its connection behind."""
    tried = connections(database.url, statement_timeout=30.0)
    late = asyncio.create_task(tried.fetch("select pg_sleep(0.2)", deadline=after(30)))
    while not await database.owner.fetchval(COUNT, "select pg_sleep(0.2)"):
        pass
    await tried.close()
    assert await late
    mine = "select count(*) from pg_stat_activity where datname = current_database()"
    async with asyncio.timeout(30):
        while await database.owner.fetchval(mine) > 1:
            pass
