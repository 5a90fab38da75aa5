"""Nobody feels anybody else: a lock, a flood or a standby that is away leave others their answers.

The service is a process of its own, on a PostgreSQL of this module's own. `make faults` runs these.
"""

import asyncio
import contextlib
import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import asyncpg
import pytest

from tests.conftest import ROLE, SECRET, bearer, serving_postgres
from tests.support.cluster import Cluster
from tests.support.process import run

pytestmark = pytest.mark.faults

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

USERS = [f"u{number}" for number in range(70)]  # of the organization crowd
EVENTS = 2000  # ids 1..2000 exist there
CROWD = f"""
    insert into users (id, organization_id, name, email)
    select 'u' || n, 'crowd', 'U', 'u@crowd.example' from generate_series(0, {len(USERS) - 1}) n;
    insert into system_event_log (organization_id, id, context, event, context_id, user_id)
    select 'crowd', id, 0, 0, 'thing', 'u0' from generate_series(1, {EVENTS}) id;
"""
# The statement takes 150 ms, however many it carries; and is counted.
SLOW = """
    create sequence statements;
    create function slow() returns trigger language plpgsql security definer as $$
      begin perform nextval('statements'), pg_sleep(0.15); return null; end $$;
    create trigger slow after insert on system_event_read
      for each statement execute function slow();
"""
OF_OURS = "select count(*) from pg_stat_activity where usename = $1::text"
WAITING = f"{OF_OURS} and wait_event_type = 'Lock'"
ACTIVE = f"{OF_OURS} and state = 'active'"
# Two seconds for everything: less to wait for.
IMPATIENT = {"LIMITS_DEADLINE": "2", "LIMITS_BODY_DEADLINE": "2"}
CONNECTIONS = (
    22 + 32 + 4 + 2 + 2 + 2
)  # of each kind with 4 in flight, service/database/pools.py; and who asks for each
MOST = CONNECTIONS + 5


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with serving_postgres(CROWD, "vacuum analyze") as cluster:
        yield cluster


@pytest.fixture
async def owner(own: Cluster) -> AsyncIterator[Owner]:
    """A connection of the owner of the database; nothing is marked."""
    connection = await asyncpg.connect(own.url(), server_settings={"synchronous_commit": "local"})
    await connection.execute("truncate system_event_read")
    yield connection
    await connection.close()


headers = cache(bearer)  # to sign tokens takes the load a lot of time


@dataclass
class Caller:
    """Sends requests to a service, on as many connections as it takes."""

    session: aiohttp.ClientSession
    base: str

    async def send(self, user: str, body: object, method: str = "POST") -> int:
        """Mark, or with DELETE unmark; the status. A body that is bytes is sent as it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(
            method, self.base + "/systemevent/read", data=data, headers=headers(user)
        ) as answer:
            await answer.read()
            return answer.status

    async def keep_marking(
        self, users: Sequence[str], until: Callable[[], bool], method: str = "POST"
    ) -> dict[str, Counter[int]]:
        """Let each user mark random events, one after the other; the statuses of each."""
        statuses = {user: Counter[int]() for user in users}

        async def mark(user: str) -> None:
            while not until():
                event = {"id": random.randint(2, EVENTS)}
                statuses[user][await self.send(user, event, method)] += 1

        await asyncio.gather(*map(mark, users))
        return statuses


@contextlib.asynccontextmanager
async def serving(
    own: Cluster, folder: Path, *arguments: str, **environ: str
) -> AsyncIterator[Caller]:
    """Run the service, and end it; its lines are thrown away."""
    own_environ = {
        "DATABASE_URL": own.url(user=ROLE),
        "AUTH_SECRET": SECRET,
        "LOGGING_LEVEL": "error",
        **environ,
    }
    async with (
        run("serve", *arguments, cwd=folder, environ=own_environ) as process,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        while await process.get("/ready") != 200:
            pass
        yield Caller(session, process.base)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(20):
        while not await condition():
            pass


async def none(owner: Owner, query: str) -> bool:
    return bool(await owner.fetchval(query, ROLE) == 0)


async def marked(owner: Owner, user: str) -> set[int]:
    """What the user has read."""
    rows = await owner.fetch(
        "select event_id from system_event_read where user_id = $1::text", user
    )
    return {row["event_id"] for row in rows}


# One statement for many


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("locked", [1, 40])
async def test_who_wants_a_locked_row_waits_alone(
    own: Cluster, owner: Owner, tmp_path: Path, locked: int, method: str
) -> None:
    """Until its own deadline, while others go on; when the lock goes, all is as before."""
    waiting, others = USERS[:locked], USERS[-29:]
    await owner.execute(
        "insert into system_event_read select 'crowd', unnest($1::text[]), 1, now()", waiting
    )
    async with serving(own, tmp_path, **IMPATIENT) as caller:
        async with owner.transaction():
            await owner.execute("delete from system_event_read where event_id = 1")
            asking = asyncio.gather(*(caller.send(user, {"id": 1}, method) for user in waiting))
            statuses = await caller.keep_marking(others, asking.done, method)
            assert set(await asking) == {503}
            for counts in statuses.values():
                assert set(counts) == {200}
                assert counts.total() >= 5
            asking = asyncio.gather(*(caller.send(user, {"id": 1}, method) for user in waiting))
        assert set(await asking) == {200}
        for user in waiting:
            assert await marked(owner, user) == ({1} if method == "POST" else set())


async def test_who_waits_for_a_row_does_not_hold_up_an_altered_table(
    own: Cluster, owner: Owner, tmp_path: Path
) -> None:
    """Everybody else would wait behind that."""
    await owner.execute("insert into system_event_read values ('crowd', 'u1', 1, now())")
    altering = await asyncpg.connect(own.url(), server_settings={"lock_timeout": "5s"})
    async with serving(own, tmp_path) as caller:
        async with owner.transaction():
            await owner.execute("delete from system_event_read where event_id = 1")
            asking = asyncio.create_task(caller.send("u1", {"id": 1}))
            waiting = f"{WAITING} and clock_timestamp() - query_start > '0.2 s'"  # apart
            while await none(altering, waiting):
                pass
            await altering.execute("alter table system_event_log add x int")
            await altering.execute("alter table system_event_log drop x")
            assert not asking.done()
        assert await asking == 200
    await altering.close()


async def test_after_a_503_nothing_happens(own: Cluster, owner: Owner, tmp_path: Path) -> None:
    """A mark that was given up does not come after what its caller did next."""
    async with serving(own, tmp_path, **IMPATIENT) as caller:
        transaction = owner.transaction()
        await transaction.start()  # a row that may come into being: marking has to wait for it
        await owner.execute("insert into system_event_read values ('crowd', 'u1', 1, now())")
        assert await caller.send("u1", {"id": 1}) == 503
        assert await none(owner, WAITING)
        assert await caller.send("u1", {"id": 1}, "DELETE") == 200
        await transaction.rollback()
        await until(lambda: none(owner, ACTIVE))
        assert await marked(owner, "u1") == set()


async def test_after_a_503_the_next_request_waits_for_the_row(
    own: Cluster, owner: Owner, tmp_path: Path
) -> None:
    """And does its work when the lock goes."""
    await owner.execute("insert into system_event_read values ('crowd', 'u1', 1, now())")
    async with serving(own, tmp_path, **IMPATIENT) as caller:
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute("select from system_event_read for update")
        assert await caller.send("u1", {"id": 1}, "DELETE") == 503
        assert await none(owner, WAITING)
        unmarking = asyncio.create_task(caller.send("u1", {"id": 1}, "DELETE"))
        while await none(owner, WAITING):
            assert not unmarking.done()
        await transaction.rollback()
        assert await unmarking == 200
        await until(lambda: none(owner, ACTIVE))
        assert await marked(owner, "u1") == set()


@pytest.mark.late
@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("workers", [1, 2])
async def test_overload_leaves_most_of_the_capacity(
    own: Cluster, owner: Owner, tmp_path: Path, workers: int, times: int
) -> None:
    """Statements of 150 ms carry 16 in all: who cannot be served in time hears so at once."""
    capacity = 16 / 0.15
    few = str(16 // workers)  # each worker has a statement in flight
    seconds, tick = 8, 0.02
    loop = asyncio.get_running_loop()
    early: list[int] = []  # answers that came while requests did
    refused: list[float] = []  # seconds that it took
    numbers = itertools.count()
    await owner.execute(SLOW)
    try:
        async with serving(
            own, tmp_path, "--workers", str(workers), COMMIT_MAX_REQUESTS=few, **IMPATIENT
        ) as caller:

            async def ask() -> int:
                number = next(numbers)
                start = loop.time()
                user = USERS[number % len(USERS)]
                status = await caller.send(user, {"id": 1 + number % EVENTS})
                if loop.time() < end:
                    early.append(status)
                if status != 200:
                    refused.append(loop.time() - start)
                return status

            before = await owner.fetchval("select nextval('statements')")
            begin = loop.time()
            end = begin + seconds
            asking: list[asyncio.Task[int]] = []
            while (now := loop.time()) < end:  # at a constant rate, whatever the answers are
                due = int((now - begin) * capacity * times) - len(asking)
                asking += [asyncio.create_task(ask()) for _ in range(due)]
                await asyncio.sleep(tick)
            statements = await owner.fetchval("select nextval('statements')") - before
            assert set(await asyncio.gather(*asking)) == {200, 503}
    finally:
        await owner.execute("drop function slow cascade; drop sequence statements")
    assert early.count(200) >= 0.8 * statements * 16 / workers
    assert statements >= 0.5 * seconds / 0.15 * workers  # as many as a busy machine manages
    assert statistics.median(refused) < 0.5


UNKNOWN = json.dumps({"ids": list(range(1_000_001, 1_010_001))}).encode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_one_token_cannot_flood_others(
    own: Cluster, owner: Owner, tmp_path: Path, *, chunked: bool
) -> None:
    """A hundred connections of one token, 10,000 unknown ids in each request."""
    impatient = {"LIMITS_DEADLINE": "4", "LIMITS_BODY_DEADLINE": "4"}
    async with serving(own, tmp_path, **impatient) as caller:

        async def chunks() -> AsyncIterator[bytes]:
            yield UNKNOWN

        async def flood() -> None:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    body: Any = chunks() if chunked else UNKNOWN
                    async with caller.session.post(
                        caller.base + "/systemevent/read", data=body, headers=headers("alice")
                    ) as answer:
                        seen[answer.status] += 1
                        flooded.set()

        seen, flooded = Counter[int](), asyncio.Event()
        flooding = [asyncio.create_task(flood()) for _ in range(110)]
        try:
            await flooded.wait()
            statuses = Counter[int]()

            async def mark() -> None:
                for number in range(50):
                    statuses[await caller.send("gina", {"id": 1 + number % 30})] += 1

            await asyncio.gather(*(mark() for _ in range(4)))
        finally:
            for task in flooding:
                task.cancel()
            await asyncio.gather(*flooding, return_exceptions=True)
    assert statuses == {200: 200}
    assert set(seen) <= {200, 503}


# A server that is away, in three ways


async def test_a_commit_that_waits_for_a_replica_leaves_a_bounded_number_behind(
    own: Cluster, owner: Owner, tmp_path: Path
) -> None:
    """Commits do not end while the only synchronous standby is away."""
    hasty = {"LIMITS_DEADLINE": "0.3", "LIMITS_BODY_DEADLINE": "0.3", "COMMIT_IN_FLIGHT": "4"}
    async with serving(own, tmp_path, **hasty) as caller:
        assert await caller.send("u0", {"id": 1}) == 200
        await owner.execute("alter system set synchronous_standby_names = 'away'")
        try:
            await owner.execute("select pg_reload_conf()")
            others = itertools.count(2)  # events; what is written waits from now on
            while await caller.send("u0", {"id": next(others)}) == 200:
                pass
            counts = []
            for _ in range(4):
                rounds = itertools.count()
                statuses = await caller.keep_marking(USERS[:10], lambda: next(rounds) >= 80)  # noqa: B023
                assert sum(statuses.values(), Counter()) == {503: 80}
                counts.append(await owner.fetchval(OF_OURS, ROLE))
            assert max(counts) <= MOST
            assert counts[-1] <= counts[-2] + 2  # it does not grow any more
        finally:
            await owner.execute("alter system reset synchronous_standby_names")
            await owner.execute("select pg_reload_conf()")
        async with asyncio.timeout(5):
            while await caller.send("u0", {"id": 100}) != 200:
                pass
        sent = [caller.send(user, {"id": 101}) for user in USERS]
        assert set(await asyncio.gather(*sent)) == {200}
        for user in USERS:
            assert 101 in await marked(owner, user)
        await until(lambda: few(owner))


async def few(owner: Owner) -> bool:
    """Whether no more connections are open than before the trouble, or hardly."""
    return bool(await owner.fetchval(OF_OURS, ROLE) <= 8)


@pytest.mark.parametrize("kind", ["frozen", "killed"])
async def test_a_server_that_comes_back_finds_no_connections_left(
    own: Cluster, owner: Owner, tmp_path: Path, kind: str
) -> None:
    """More often than there are connections: none of their places is lost."""
    hasty = {
        "LIMITS_DEADLINE": "0.3",
        "LIMITS_BODY_DEADLINE": "0.3",
        "DATABASE_CONNECT_TIMEOUT": "0.3",
    }
    async with serving(own, tmp_path, **hasty) as caller:
        for _ in range(3 if kind == "killed" else 20):
            if kind == "frozen":
                own.freeze()
            else:
                own.kill()
            try:
                sent = [caller.send(user, {"id": 1}) for user in USERS[:20]]
                assert set(await asyncio.gather(*sent)) == {503}
            finally:
                if kind == "frozen":
                    own.thaw()
                else:
                    own.start()
            while await caller.send("u0", {"id": 1}) != 200:
                pass
        connection = await asyncpg.connect(own.url())
        await until(lambda: few(connection))
        await connection.close()
        sent = [caller.send(user, {"id": 2}) for user in USERS]
        assert set(await asyncio.gather(*sent)) == {200}
