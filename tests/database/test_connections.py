"""Connections: bounded in time and number, and left where their state is in doubt."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from service import config
from service.database import url
from service.database.connections import Connections
from service.database.connector import Connector
from service.database.outage import Outage
from service.database.queries import load_queries
from service.database.retry import fetch
from service.observing import Observers
from tests.conftest import Sandbox, Service, Start, bearer

# Limits of sessions, and what is left of them on the server
pytestmark = pytest.mark.session

SLEEP = "select pg_sleep(30)"
ACTIVE = "select count(*) from pg_stat_activity where state = 'active' and query like $1::text"
LOCK = "delete from system_event_read where organization_id = 'acme' and event_id = 1"


def connections(address: str, size: int = 1, seconds: float = 0.5) -> Connections:
    """Connections whose statement_timeout is half a second, where not said otherwise."""
    connector = Connector(config.Database(url=address))
    outage = Outage(connector.hosts, Observers())
    return Connections(connector, load_queries(), outage, size, {}, seconds)


@pytest.mark.parametrize("seconds", [0.2, 30], ids=["the caller's time", "statement_timeout"])
async def test_a_statement_ends_on_the_server(database: Sandbox, seconds: float) -> None:
    """By the caller's deadline, or by statement_timeout, which is half a second here."""
    tried = connections(database.url)
    with pytest.raises(asyncpg.QueryCanceledError):
        await tried.fetch(SLEEP, seconds=seconds)
    assert await database.owner.fetchval(ACTIVE, SLEEP) == 0
    # The connection is as good as before, and so are its limits.
    ((limit,),) = await tried.fetch("show statement_timeout", seconds=30)
    assert limit == "500ms"
    await tried.close()


async def test_a_statement_that_waits_for_a_lock_ends_by_the_deadline(
    database: Sandbox,
) -> None:
    """And does not do its work when the lock goes."""
    await database.owner.execute("insert into system_event_read values ('acme', 'alice', 1, now())")
    tried = connections(database.url, seconds=60)
    async with database.owner.transaction():
        await database.owner.execute("select from system_event_read for update")
        with pytest.raises(asyncpg.QueryCanceledError):
            await tried.fetch(LOCK, seconds=0.2)
    assert await database.read_rows() == {("acme", "alice", 1)}
    await tried.close()


async def test_no_attempt_begins_when_the_time_is_over(database: Sandbox) -> None:
    tried = connections(database.url)
    await tried.fetch("select 1", seconds=30)
    with pytest.raises(TimeoutError):
        await tried.fetch(LOCK, seconds=0)
    await tried.close()


async def test_a_place_is_taken_until_the_server_has_ended_what_was_given_up(
    database: Sandbox,
) -> None:
    """Otherwise what is left behind there could grow without bound."""
    tried = connections(database.url, 2, seconds=60)
    slow = [asyncio.create_task(tried.fetch(SLEEP, seconds=60)) for _ in range(2)]
    while await database.owner.fetchval(ACTIVE, SLEEP) < 2:
        pass
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    async with asyncio.timeout(30):
        await tried.fetch("select 1", seconds=30)
    assert await database.owner.fetchval(ACTIVE, SLEEP) < 2
    await tried.close()


async def test_what_is_left_behind_counts_while_the_server_says_that_it_is_there(
    database: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not end takes a place; no more than there are places."""
    there = True

    async def still_there(_: object, pids: list[int]) -> set[int]:
        return set(pids) if there else set()

    monkeypatch.setattr(Connections, "_still_there", still_there)
    tried = connections(database.url, seconds=60)
    slow = asyncio.create_task(tried.fetch(SLEEP, seconds=60))
    while not await database.owner.fetchval(ACTIVE, SLEEP):
        pass
    slow.cancel()
    await asyncio.wait([slow])
    with pytest.raises(TimeoutError):
        await tried.fetch("select 1", seconds=0.3)
    there = False
    async with asyncio.timeout(30):
        await tried.fetch("select 1", seconds=30)
    await tried.close()


async def test_a_statement_that_is_cut_off_counts_as_left_behind(database: Sandbox) -> None:
    """Whatever asyncpg says of it: the server may still be at work on it."""
    await database.owner.execute(
        "create function stay() returns void language plpgsql as $$ begin perform pg_sleep(30);"
        " exception when query_canceled then perform pg_sleep(30); end $$"
    )
    tried = connections(database.url, seconds=0.3)
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await tried.fetch("select stay()", seconds=30)
    assert tried.left_behind == 1
    await database.owner.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where query = 'select stay()'"
    )
    async with asyncio.timeout(30):
        await tried.fetch("select 1", seconds=30)
    assert tried.left_behind == 0
    await tried.close()


async def test_statements_that_are_lost_are_prepared_again(database: Sandbox) -> None:
    """A connection behind a proxy may be given another session: it is left for a new one."""
    tried = connections(database.url)
    later = asyncio.get_running_loop().time() + 30
    for _ in range(2):
        assert await fetch(tried, "select 1", deadline=later)
    await tried.fetch("deallocate all", seconds=30)
    assert await fetch(tried, "select 1", deadline=later)
    await tried.close()


@pytest.fixture
async def hole(database: Sandbox) -> AsyncIterator[list[object]]:
    """A server on another address and the same port, that never answers; who came to it."""
    came: list[object] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        await reader.read()
        writer.close()  # or the server waits for it, from Python 3.12 on

    async with await asyncio.start_server(keep, "127.0.0.2", urlsplit(database.url).port):
        yield came


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a name stands for; where it is nothing, the resolver does not answer."""
    known: dict[str, list[str]] = {}

    async def look_up(_: object, name: str, port: int, **__: object) -> list[Any]:
        while name in known and not known[name]:
            await asyncio.Event().wait()
        return [(0, 0, 0, "", (where, port)) for where in known.get(name, [name])]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    return known


WHERE = {
    "hosts": "postgresql://{user}@127.0.0.2:{port},127.0.0.1:{port}{path}",
    "host=": "postgresql://{user}@{path}?host=127.0.0.2,127.0.0.1&port={port}",
    "PGHOST": "postgresql://{user}@{path}",
    "a name": "postgresql://{user}@db.example:{port}{path}",
    "a resolver": "postgresql://{user}@lost.example:{port},127.0.0.1:{port}{path}",
}


@pytest.mark.parametrize("where", WHERE)
async def test_an_address_that_never_answers_takes_its_share_of_the_time(
    where: str,
    start: Start,
    database: Sandbox,
    hole: list[object],
    names: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A primary that is gone without a word, first of two: marks are served, and /ready says so."""
    parts = urlsplit(database.url)
    names |= {"db.example": ["127.0.0.2", "127.0.0.1"], "lost.example": []}
    if where == "PGHOST":
        monkeypatch.setenv("PGHOST", "127.0.0.2,127.0.0.1")
        monkeypatch.setenv("PGPORT", str(parts.port))
    user = parts.netloc.rpartition("@")[0]  # with its password, where it has one
    address = WHERE[where].format(user=user, port=parts.port, path=parts.path)
    url.read(address)
    async with asyncio.timeout(60):
        client = await start(address, DATABASE_CONNECT_TIMEOUT="2")
    async with client.post("/systemevent/read", json={"id": 1}, headers=bearer()) as answer:
        assert answer.status == 200
    service = client.server
    assert isinstance(service, Service)
    async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
        assert answer.status == 200
    assert bool(hole) == (where != "a resolver")


async def test_an_address_that_did_not_answer_comes_last(
    database: Sandbox, hole: list[object]
) -> None:
    """For a while, so that not each new connection waits for it."""
    address = database.url.replace("@", "@127.0.0.2:{port},").format(
        port=urlsplit(database.url).port
    )
    connector = Connector(config.Database(url=address, connect_timeout=0.5))
    for _ in range(3):
        deadline = asyncio.get_running_loop().time() + 30
        await (await connector.connect(deadline, {})).close()
    assert len(hole) == 1


async def test_nothing_is_kept_after_the_end(database: Sandbox) -> None:
    """A statement that ends after close() does not leave its connection behind."""
    tried = connections(database.url, seconds=30.0)
    late = asyncio.create_task(tried.fetch("select pg_sleep(0.2)", seconds=60))
    while not await database.owner.fetchval(ACTIVE, "select pg_sleep(0.2)"):
        pass
    await tried.close()
    assert await late
    mine = "select count(*) from pg_stat_activity where datname = current_database()"
    async with asyncio.timeout(30):
        while await database.owner.fetchval(mine) > 1:
            pass
