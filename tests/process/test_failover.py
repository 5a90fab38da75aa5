"""The database dies, restarts, freezes or moves: what callers see of it, and what is kept."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from tests.conftest import ROLE, Service, bearer, prepare, psql
from tests.support.cluster import Cluster, standby_of
from tests.support.load import EVENTS, Load
from tests.support.pooler import PGBOUNCER, transactions

Client = TestClient[Any, Any]
Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

IMPATIENT = {"LIMITS_DEADLINE": "0.5", "LIMITS_BODY_DEADLINE": "0.5"}
TERMINATE = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"


def kill(server: Cluster) -> None:
    """Kill -9, and remove the lock of the socket, which names a process that is gone."""
    server.kill()
    (server.data / f".s.PGSQL.{server.port}.lock").unlink(missing_ok=True)


def execute(server: Cluster, *commands: str) -> str:
    """Run commands as the owner of the database."""
    return psql(server.url(), *commands)


@pytest.fixture(scope="module")
def module_server() -> Iterator[Cluster]:
    """A PostgreSQL of this module's own, with the service's schema in its database postgres."""
    server = Cluster(max_wal_senders="4", deadlock_timeout="10ms")
    server.start()
    execute(server, f"create role {ROLE} login")
    prepare(server.url())
    execute(server, EVENTS, "vacuum analyze")
    yield server
    server.remove()


@pytest.fixture
def server(module_server: Cluster) -> Iterator[Cluster]:
    """It runs, and nothing is marked."""
    if not module_server.running():
        module_server.start()
    execute(module_server, "truncate system_event_read")
    yield module_server
    if module_server.running():
        module_server.thaw()  # a test that failed may have left it frozen


@pytest.fixture
async def owner(server: Cluster) -> AsyncIterator[Owner]:
    """A connection of the owner of the database."""
    connection = await asyncpg.connect(server.url())
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def serving(url: str, **environ: str) -> AsyncIterator[Client]:
    """A client of a service on the database at `url`, once it is ready."""
    service = Service(url, environ)
    async with TestClient(service) as client:
        await until_ready(client)
        yield client


def admin(client: Client, path: str) -> str:
    """Address on the operator's port."""
    service = client.server
    assert isinstance(service, Service)
    return service.admin + path


async def until_ready(client: Client) -> None:
    """Wait until the service says that it can serve."""
    async with asyncio.timeout(30):
        while True:
            async with aiohttp.request("GET", admin(client, "/ready")) as answer:
                if answer.status == 200:
                    return


async def until_answered(client: Client) -> None:
    """Wait until a request of each kind is answered again: the service recovers by itself."""
    async with asyncio.timeout(30):
        while await ask_all(client) != [200, 200, 200]:
            pass


async def until_logged(server: Cluster, text: str, seen: int = 0) -> None:
    """Wait until the server's log has a text once more than `seen`."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(logged, server, text) <= seen:
            pass


def logged(server: Cluster, text: str) -> int:
    """How often the server's log has a text."""
    return server.log.read_text().count(text)


async def send(client: Client, method: str, path: str, body: object) -> int:
    """Send a request as alice; its status."""
    async with client.request(method, path, json=body, headers=bearer()) as answer:
        assert answer.content_type == "application/json"
        return answer.status


async def mark(client: Client, *ids: int, method: str = "POST") -> int:
    """Mark, or with DELETE unmark; the status."""
    return await send(client, method, "/systemevent/read", {"ids": ids})


async def ask_all(client: Client) -> list[int]:
    """Send a request of each kind at the same time; their statuses."""
    requests = [
        mark(client, 1),
        mark(client, 2, method="DELETE"),
        send(client, "POST", "/systemevent", {}),
    ]
    return await asyncio.gather(*requests)


def marked(server: Cluster) -> set[int]:
    """What is marked for alice."""
    rows = execute(server, "select event_id from system_event_read where user_id = 'alice'")
    return set(map(int, rows.split()))


def killed(server: Cluster) -> None:
    """Kill -9, then start."""
    kill(server)
    server.start()


def restarted(server: Cluster) -> None:
    """What an operator does for an upgrade."""
    server.stop("fast")
    server.start()


def crashed(server: Cluster) -> None:
    """Stop without a checkpoint, then start."""
    server.stop("immediate")
    server.start()


def terminated(server: Cluster) -> None:
    """End every connection of the service."""
    execute(server, TERMINATE)


@pytest.mark.late
@pytest.mark.parametrize("disturb", [killed, restarted, crashed, terminated])
async def test_what_ends_inside_the_deadline_is_invisible_under_load(
    server: Cluster, disturb: Callable[[Cluster], None]
) -> None:
    """No request fails, and no acknowledged mark is missing."""
    async with serving(server.url(user=ROLE)) as client:
        async with Load(partial(mark, client)) as load:
            await asyncio.to_thread(disturb, server)
        assert load.refused == []
        assert load.acknowledged <= marked(server)


@pytest.mark.late
@pytest.mark.parametrize("disturb", [killed, restarted, crashed, terminated])
async def test_connections_that_died_idle_are_invisible(
    server: Cluster, disturb: Callable[[Cluster], None]
) -> None:
    """The first request of each kind after it is answered as any other."""
    async with serving(server.url(user=ROLE)) as client:
        assert await ask_all(client) == [200, 200, 200]
        disturb(server)
        assert await ask_all(client) == [200, 200, 200]


@contextlib.contextmanager
def ice(server: Cluster) -> Iterator[None]:
    """Freeze the server while the context lasts."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def test_a_frozen_server_is_answered_with_503(server: Cluster) -> None:
    """Within the deadline; /live stays, /ready says no; and all is well after the thaw."""
    async with serving(server.url(user=ROLE), **IMPATIENT) as client:
        with ice(server):
            async with asyncio.timeout(20):
                for _ in range(2):  # the first on connections that exist, the second on none
                    assert await ask_all(client) == [503, 503, 503]
                for path, status in (("/live", 200), ("/ready", 503)):
                    async with aiohttp.request("GET", admin(client, path)) as answer:
                        assert answer.status == status
        await until_ready(client)
        await until_answered(client)


@pytest.mark.late
async def test_a_server_frozen_for_less_than_the_deadline_is_invisible(server: Cluster) -> None:
    """Requests wait for it, or are sent again; here for as long as /ready takes to notice."""
    async with serving(server.url(user=ROLE), DATABASE_STATEMENT_TIMEOUT="1") as client:
        assert await ask_all(client) == [200, 200, 200]
        with ice(server):
            waiting = asyncio.create_task(ask_all(client))
            async with aiohttp.request("GET", admin(client, "/ready")) as answer:
                assert answer.status == 503
        assert await waiting == [200, 200, 200]


@pytest.mark.late
async def test_a_service_stops_while_its_server_is_frozen(server: Cluster) -> None:
    """Stopping is bounded, whatever the database does."""
    async with asyncio.timeout(30):
        async with serving(server.url(user=ROLE), **IMPATIENT) as client:
            assert await ask_all(client) == [200, 200, 200]
            server.freeze()
        server.thaw()


async def test_what_was_refused_is_not_done_by_a_process_that_thaws(server: Cluster) -> None:
    """The server comes back, but for the process that has the mark before it, unread."""
    limits = IMPATIENT | {"LIMITS_DEADLINE": "1.2", "DATABASE_STATEMENT_TIMEOUT": "0.5"}
    last = f"where usename = '{ROLE}' order by state_change desc limit 1"
    async with serving(server.url(user=ROLE), **limits) as client:
        assert await mark(client, 2) == 200
        held = int(execute(server, f"select pid from pg_stat_activity {last}"))
        server.freeze()
        assert await mark(client, 3) == 503
        for pid in set(server.pids()) - {held}:
            with contextlib.suppress(ProcessLookupError):  # it ended as soon as another was awake
                os.kill(pid, signal.SIGCONT)
        await until_answered(client)
        assert await mark(client, 3, method="DELETE") == 200
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while not is_told_to_end(held):
                    await asyncio.sleep(0.05)
        os.kill(held, signal.SIGCONT)
        async with asyncio.timeout(30):
            while held in server.pids():
                await asyncio.sleep(0.05)
    assert 3 not in marked(server)


def is_told_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process until it thaws."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


async def test_a_server_that_is_away_for_longer_is_answered_with_503(server: Cluster) -> None:
    """And the service recovers by itself when it is back."""
    async with serving(server.url(user=ROLE), **IMPATIENT) as client:
        server.stop()
        assert await ask_all(client) == [503, 503, 503]
        server.start()
        await until_ready(client)
        await until_answered(client)


async def test_a_primary_that_turns_read_only_is_left(server: Cluster) -> None:
    """A mark waits for a server that takes it; lists are answered meanwhile."""
    refusal = "in a read-only transaction"
    async with serving(server.url(user=ROLE)) as client:
        seen = logged(server, refusal)
        execute(server, f"alter role {ROLE} set default_transaction_read_only = on", TERMINATE)
        waiting = asyncio.create_task(mark(client, 1))
        await until_logged(server, refusal, seen)
        assert await send(client, "POST", "/systemevent", {}) == 200
        execute(server, f"alter role {ROLE} reset default_transaction_read_only")
        assert await waiting == 200
    assert marked(server) == {1}


async def test_too_many_connections_are_waited_for(server: Cluster) -> None:
    """The server has no place for one more: retried until it has."""
    refusal = "too many connections for role"
    async with serving(server.url(user=ROLE)) as client:
        seen = logged(server, refusal)
        execute(server, f"alter role {ROLE} connection limit 0", TERMINATE)
        waiting = asyncio.create_task(ask_all(client))
        await until_logged(server, refusal, seen + 2)
        execute(server, f"alter role {ROLE} connection limit -1")
        assert await waiting == [200, 200, 200]


async def test_a_server_whose_connections_are_used_up_is_told_as_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To callers as a 503 at their deadline, to the operator in the server's words."""
    server = Cluster(max_connections="12")
    server.start()
    others: list[Owner] = []
    try:
        execute(server, f"create role {ROLE} login")
        prepare(server.url())
        async with asyncio.timeout(30), serving(server.url(user=ROLE), **IMPATIENT) as client:
            owner = await asyncpg.connect(server.url())
            others.append(owner)
            while await ask_all(client) != [503, 503, 503]:  # ours are ended until others have all
                await owner.execute(TERMINATE)
                with contextlib.suppress(asyncpg.TooManyConnectionsError):
                    while True:
                        others.append(await asyncpg.connect(server.url()))
            async with client.post("/systemevent/read", json={"id": 1}, headers=bearer()) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert "the database is not available" in (await answer.json())["error"]
            lost = [line for line in caplog.messages if line.startswith("database lost")]
            assert lost
            # The last few places are for superusers, and the server says so.
            assert all("too many clients" in line or "are reserved" in line for line in lost)
            for other in others:
                other.terminate()
            await until_answered(client)
        assert not [record for record in caplog.records if record.exc_info]
    finally:
        server.remove()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("POST", "insert into system_event_read values ('acme', 'alice', 1)"),
        ("DELETE", "delete from system_event_read where event_id = 1"),
    ],
)
async def test_a_serialization_failure_is_retried(
    server: Cluster, owner: Owner, isolation: str, method: str, change: str
) -> None:
    """A stricter isolation level than the default costs a retry, not the request."""
    failure = "could not serialize access"
    if method == "DELETE":
        await owner.execute("insert into system_event_read values ('acme', 'alice', 1)")
    execute(server, f"alter role {ROLE} set default_transaction_isolation = '{isolation}'")
    try:
        async with serving(server.url(user=ROLE)) as client:
            seen = logged(server, failure)
            async with owner.transaction():
                await owner.execute(change)
                waiting = asyncio.create_task(mark(client, 1, 2, method=method))
                await until_blocked(owner, ROLE)
            assert await waiting == 200
            assert logged(server, failure) > seen
    finally:
        execute(server, f"alter role {ROLE} reset default_transaction_isolation")
    assert marked(server) == ({1, 2} if method == "POST" else set())


async def until_blocked(watcher: Owner, role: str) -> None:
    """Wait until a session of `role` waits for a lock."""
    async with asyncio.timeout(30):
        while not await watcher.fetchval(
            "select exists (select from pg_locks l join pg_stat_activity a using (pid)"
            " where not l.granted and a.usename = $1)",
            role,
        ):
            pass


async def test_a_deadlock_is_retried(server: Cluster, owner: Owner) -> None:
    """A delete that PostgreSQL ends to resolve a deadlock runs again; its caller sees a 200.

    The service's statement holds row 1 and waits at a gate; the other holds row 2 and wants row 1.
    Once the gate opens, the service's wants row 2: a circle, which it is the one to notice. The
    first retry may take row 1 before the other is awake, and meet a second one. Only a statement of
    a single request waits so long; one that may be shared is sent away at the gate.
    """
    await owner.execute(
        """
        insert into system_event_read values ('acme', 'alice', 1), ('acme', 'alice', 2);
        create function wait_at_gate() returns trigger language plpgsql as
          $$ begin
            if current_setting('lock_timeout') = '50ms' then raise lock_not_available; end if;
            perform set_config('lock_timeout', '0', true);
            perform pg_advisory_xact_lock_shared(1);
            return old;
          end $$;
        create trigger gate before delete on system_event_read
          for each row when (old.event_id = 1 and current_user <> 'postgres')
          execute function wait_at_gate();
        """
    )
    other = await asyncpg.connect(server.url(), server_settings={"deadlock_timeout": "1h"})
    seen = logged(server, "deadlock detected")
    try:
        async with serving(server.url(user=ROLE), LIMITS_DEADLINE="30") as client:
            await owner.execute("select pg_advisory_lock(1)")
            async with other.transaction():
                await other.execute("delete from system_event_read where event_id = 2")
                waiting = asyncio.create_task(mark(client, 1, 2, method="DELETE"))
                await until_blocked(owner, ROLE)
                closing = asyncio.create_task(
                    other.execute("delete from system_event_read where event_id = 1")
                )
                await until_blocked(owner, "postgres")
                await owner.execute("select pg_advisory_unlock(1)")
                await closing
            assert await waiting == 200
    finally:
        await other.close()
        await owner.execute("drop function wait_at_gate cascade")
    assert logged(server, "deadlock detected") > seen
    assert marked(server) == set()


@pytest.fixture
def standby(server: Cluster) -> Iterator[Cluster]:
    with standby_of(server) as standby:
        yield standby


@pytest.mark.late
@pytest.mark.parametrize("fail", [kill, Cluster.freeze])
async def test_a_failover_is_invisible_under_load(
    server: Cluster, standby: Cluster, fail: Callable[[Cluster], None]
) -> None:
    """The primary dies or hangs, its standby is promoted: no failed request, no mark missing."""
    hosts = f"127.0.0.1:{server.port},127.0.0.1:{standby.port}"
    url = f"postgresql://{ROLE}@{hosts}/postgres?target_session_attrs=primary"

    def fail_over() -> None:
        fail(server)
        standby.run("pg_ctl", "-w", "-D", standby.data, "promote")

    # Time enough to give up on each connection to the old one, and to find the new one.
    limits = {
        "DATABASE_STATEMENT_TIMEOUT": "0.5",
        "DATABASE_CONNECT_TIMEOUT": "0.5",
        "LIMITS_DEADLINE": "20",
    }
    async with serving(url, **limits) as client:
        async with Load(partial(mark, client)) as load:
            await asyncio.to_thread(fail_over)
        assert load.refused == []
        assert load.acknowledged <= marked(standby)
        assert await ask_all(client) == [200, 200, 200]


@pytest.fixture
def pgbouncer(server: Cluster) -> Iterator[str]:
    """A PgBouncer in transaction mode before the server, with fewer connections than clients."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    with transactions(server, 2) as port:
        yield f"postgresql://{ROLE}@127.0.0.1:{port}/postgres"


async def test_pgbouncer_in_transaction_mode(server: Cluster, pgbouncer: str) -> None:
    """Every kind of request works through it, many at a time, with the settings in the README."""
    async with serving(pgbouncer, DATABASE_STATEMENT_CACHE_SIZE="0") as client:
        ids = range(1, 21)
        for method, expected in (("POST", set(ids)), ("DELETE", set())):
            answers = await asyncio.gather(
                *(mark(client, n, method=method) for n in ids),
                *(send(client, "POST", "/systemevent", {"take": n}) for n in ids),
            )
            assert set(answers) == {200}
            assert marked(server) == expected


@pytest.mark.late
async def test_a_restart_behind_pgbouncer_is_invisible_under_load(
    server: Cluster, pgbouncer: str
) -> None:
    """PgBouncer ends its clients' connections when the server dies: retried as any other."""
    async with serving(pgbouncer, DATABASE_STATEMENT_CACHE_SIZE="0") as client:
        async with Load(partial(mark, client)) as load:
            await asyncio.to_thread(killed, server)
        assert load.refused == []
        assert load.acknowledged <= marked(server)
