"""Up to when a replica is complete, as servers say that tests make up."""

import asyncio
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from asyncpg import exceptions as pg

from service import config
from service.database import replica as replica_module
from service.database.failures import is_away
from service.database.queries import Queries, load_queries
from service.database.replica import Replica
from service.observing import Observers, ReplicaLeft, ReplicaRead, ReplicaUsed

LINE = "7/5/00000001"


class Servers:
    """A primary and its replica: what they say, and how often they were asked."""

    def __init__(self) -> None:
        self.at, self.position, self.line = 1000.0, 100, LINE
        self.replayed: int | None = 100
        self.fails: Exception | None = None

    async def fetch(self, query: str, *_: Any, check: Any = None, **__: Any) -> list[Any]:
        """What a statement gives."""
        if "pg_current_wal" in query:
            return [{"at": self.at, "position": self.position, "line": self.line}]
        if "pg_last_wal" in query:
            return [{"replayed": self.replayed, "line": LINE}]
        if check:
            await check(self)
        if self.fails:
            raise self.fails
        return [{"total": 1}]


QUERIES: Queries = load_queries()


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def replica(servers: Servers, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> Replica:
    """One that has not looked yet; time is the servers'."""
    database = config.Database(read_url="postgresql://h/x")
    clock = SimpleNamespace(monotonic=lambda: 0.0, time=lambda: 0.0)
    monkeypatch.setattr(replica_module, "time", clock)
    observers = Observers()
    for kind in (ReplicaLeft, ReplicaRead, ReplicaUsed):
        observers.listen(kind, told.append)
    primary: Any = servers
    configured = config.Config(database=database)
    made = Replica(configured, QUERIES, primary, [("probe", ())], observers)
    made._asking = servers  # type: ignore[assignment]
    return made


async def look(replica: Replica) -> None:
    """What the watch does each second."""
    await replica._look_at_primary()
    replica._note(await replica._look())


async def read(replica: Replica, servers: Servers, after: float = 0) -> bool:
    """Whether a read is answered there."""
    loop = asyncio.get_running_loop()
    rows = await replica.fetch(
        servers,  # type: ignore[arg-type]
        "list",
        after=after,
        deadline=loop.time() + 10,
        tell=lambda *_: None,
    )
    return bool(rows)


async def test_it_is_complete_up_to_the_latest_time_whose_position_it_has(
    replica: Replica, servers: Servers
) -> None:
    for servers.at, servers.position in ((1000.0, 100), (1001.0, 200), (1002.0, 300)):
        await look(replica)
    for servers.replayed, complete in ((100, 1000), (199, 1000), (200, 1001), (900, 1002)):
        assert await read(replica, servers, complete)
        assert not await read(replica, servers, complete + 0.001)
    servers.replayed = 99
    assert not await read(replica, servers)


async def test_nobody_reads_there_before_it_was_looked_at(
    replica: Replica, servers: Servers, told: list[Any]
) -> None:
    assert not await read(replica, servers)
    await look(replica)
    assert await read(replica, servers)
    assert told == [ReplicaRead("left"), ReplicaUsed("h:5432"), ReplicaRead("answered")]


async def test_nobody_reads_there_before_it_has_what_is_known_of_the_primary(
    replica: Replica, servers: Servers, told: list[Any]
) -> None:
    """At the start that may take some ms, which is nobody's news; later it is."""
    servers.replayed = 99
    await look(replica)
    assert not replica.is_used
    servers.replayed = 100
    await look(replica)
    assert told == [ReplicaUsed("h:5432")]


async def test_one_that_never_catches_up_is_told(
    replica: Replica, servers: Servers, told: list[Any]
) -> None:
    servers.replayed = 99
    await look(replica)
    servers.at, servers.position = 1060.0, 200
    await look(replica)
    assert told == [ReplicaLeft("h:5432", "60 s behind")]


@pytest.mark.parametrize("step", [-0.5, -1.5, -3600])
async def test_the_primary_set_its_clock_back(
    replica: Replica, servers: Servers, step: float
) -> None:
    """By less than a second: a moment goes further than that. By more: what was known is forgotten.

    The mark, of after the step, is not replayed yet.
    """
    await look(replica)
    servers.at, servers.position = servers.at + 1 + step, 200
    marked = servers.at - 0.1 + 1  # see test_marked.py
    if step > -1:
        assert not await read(replica, servers, marked)
    await look(replica)
    assert not await read(replica, servers, marked)
    servers.at += 2
    await look(replica)
    assert not await read(replica, servers, marked)
    servers.replayed = 200
    assert await read(replica, servers, marked)


async def test_a_failover_to_another_timeline(replica: Replica, servers: Servers) -> None:
    """What the old timeline has beyond the fork is further, and says nothing."""
    await look(replica)
    servers.at, servers.position, servers.line = 1001.0, 90, "7/5/00000002"
    assert replica.is_used
    await look(replica)
    assert "timeline" in str(replica.problem)
    assert not await read(replica, servers)


async def test_a_server_that_is_promoted_is_left_with_the_next_read(
    replica: Replica, servers: Servers, told: list[Any]
) -> None:
    await look(replica)
    servers.replayed = None
    assert not await read(replica, servers)
    assert not await read(replica, servers)
    assert [type(it) for it in told] == [ReplicaUsed, ReplicaLeft, ReplicaRead, ReplicaRead]
    assert "promoted" in str(replica.problem)


async def test_it_is_left_when_too_far_behind_and_taken_again_at_half_of_that(
    replica: Replica, servers: Servers
) -> None:
    for at, replayed, used in (
        (1000, 1000, True), (1009, 1000, True), (1011, 1000, False), (1016, 1009, False),
        (1017, 1016, True),
    ):  # fmt: skip
        servers.at = servers.position = at
        servers.replayed = replayed
        await look(replica)
        assert replica.is_used == used, at


AWAY = [
    pg.ConnectionDoesNotExistError("why"),
    pg.CannotConnectNowError("why"),
    pg.AdminShutdownError("why"),
    pg.TooManyConnectionsError("why"),
    pg.UndefinedTableError("why"),
    pg.InsufficientPrivilegeError("why"),
    pg.InvalidCatalogNameError("why"),
    ConnectionRefusedError(),
    asyncpg.InterfaceError("closed"),
]
NOT_AWAY = [
    pg.SerializationError("canceling statement due to conflict with recovery"),
    pg.DeadlockDetectedError("why"),
    pg.QueryCanceledError("statement timeout"),
    pg.DataError("why"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", [*AWAY, *NOT_AWAY], ids=lambda error: type(error).__name__)
async def test_what_failed_there_is_for_the_primary(
    replica: Replica, servers: Servers, error: Exception
) -> None:
    """And it is left alone where it is at fault."""
    await look(replica)
    servers.fails = error
    assert not await read(replica, servers)
    assert is_away(error) == (error in AWAY) == (not replica.is_used)


async def test_one_that_is_left_is_left_alone_for_a_while(
    replica: Replica, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "INTERVAL", 0.001)
    monkeypatch.setattr(replica_module, "PAUSE", 0.1)
    await look(replica)
    servers.fails = pg.AdminShutdownError("ended")
    assert not await read(replica, servers)
    servers.fails = None
    watch = asyncio.create_task(replica.watch())
    while not replica.is_used:
        await asyncio.sleep(0.001)
    watch.cancel()
    assert asyncio.get_running_loop().time() >= replica._alone_until


async def test_it_has_to_do_what_is_read_before_anybody_reads(
    replica: Replica, servers: Servers
) -> None:
    servers.fails = pg.UndefinedTableError("no table")
    await look(replica)
    assert replica.problem == "no table"
