"""Whatever happens to the database, the network, the clock or the service, under a steady load.

In each case what was acknowledged is stored, no answer is later than its deadline, all is well
again within seconds, and nothing is left open. `make faults` runs these, and prints what callers
saw; docs/faults.md is such a table.
"""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from service.database.migrations import VIEWS
from service.database.queries import migration_names
from tests.conftest import ROLE, SECRET, psql, serving_postgres
from tests.support.cluster import Cluster, free_port, standby_of
from tests.support.load import EVENTS, NO_ANSWER, Load, marking
from tests.support.process import Process, run
from tests.support.wire import Wire

pytestmark = [pytest.mark.faults, pytest.mark.late]

DEADLINE = 3.0  # of a request: the faults that last do so for longer
SERVICE = {
    "AUTH_SECRET": SECRET,
    "LIMITS_DEADLINE": str(DEADLINE),
    "LIMITS_BODY_DEADLINE": "1",
    "DATABASE_STATEMENT_TIMEOUT": "1",
    "DATABASE_CONNECT_TIMEOUT": "1",
    "LOGGING_LEVEL": "error",
}
PAUSE = 0.01  # between two requests of a caller
WELL = 5.0  # seconds within which all callers have their answers again
LATE = 1.0  # seconds that an answer may be later than its deadline on a machine that is busy
OF_OURS = f"select count(*) from pg_stat_activity where usename = '{ROLE}'"
TERMINATE = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
HEAD = ("| fault | what callers saw | well again after |", "|---|---|--:|")
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@dataclass
class Stage:
    """What a fault has to act on."""

    server: Cluster
    wire: Wire
    owner: "asyncpg.Connection[asyncpg.Record]"  # not through the wire
    load: Load
    folder: Path

    async def until_refused(self) -> None:
        """Wait until the callers have had their 503."""
        while len(self.load.refused) < Load.CALLERS:
            await asyncio.sleep(0.01)


Fault = Callable[[Stage], Awaitable[None]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Callable[[str, Load, float], None]]:
    """Takes the rows of the table, which is printed at the end."""
    rows = []

    def add(fault: str, load: Load, seconds: float) -> None:
        rows.append(f"| {fault} | {load.seen()} | {seconds:.1f} s |")

    yield add
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        sys.stdout.write("\n".join(("", *HEAD, *rows, "")))


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with serving_postgres(EVENTS, "vacuum analyze", max_wal_senders="4") as cluster:
        yield cluster


@pytest.fixture
async def wire(own: Cluster) -> AsyncIterator[Wire]:
    """The way to the database; nothing is marked there."""
    psql(own.url(), "truncate system_event_read")
    async with Wire(own.port) as wire:
        yield wire


def marked(server: Cluster) -> set[int]:
    """What is stored."""
    rows = psql(server.url(), "select event_id from system_event_read where user_id = 'alice'")
    return set(map(int, rows.split()))


@contextlib.asynccontextmanager
async def serving(folder: Path, url: str, *before: str, **environ: str) -> AsyncIterator[Process]:
    """A service that is ready; `before` are words before its command."""
    environ = SERVICE | {"DATABASE_URL": url} | environ
    program = (*before, sys.executable, "-m", "service")
    async with run("serve", cwd=folder, environ=environ, program=program) as process:
        while await process.get("/ready") != 200:
            await asyncio.sleep(0.05)
        yield process


# What happens to the database


async def killed(stage: Stage) -> None:
    """PostgreSQL: kill -9, started again."""
    await asyncio.to_thread(stage.server.kill)
    await asyncio.to_thread(stage.server.start)


async def restarted(stage: Stage) -> None:
    """PostgreSQL: restarted."""
    await asyncio.to_thread(stage.server.stop)
    await asyncio.to_thread(stage.server.start)


async def stopped(stage: Stage) -> None:
    """PostgreSQL: away for longer than the deadline."""
    await asyncio.to_thread(stage.server.stop)
    await stage.until_refused()
    await asyncio.to_thread(stage.server.start)


async def terminated(stage: Stage) -> None:
    """PostgreSQL: every connection terminated, three times."""
    for _ in range(3):
        await stage.owner.execute(TERMINATE)
        await stage.load.more()


async def frozen(stage: Stage) -> None:
    """PostgreSQL: frozen for longer than the deadline, thawed."""
    stage.server.freeze()
    await stage.until_refused()
    stage.server.thaw()


async def locked(stage: Stage) -> None:
    """PostgreSQL: the table locked for longer than the deadline."""
    async with stage.owner.transaction():
        await stage.owner.execute("lock table system_event_read in access exclusive mode")
        await stage.until_refused()


async def exhausted(stage: Stage) -> None:
    """PostgreSQL: no connection left for longer than the deadline."""
    await stage.owner.execute(f"alter role {ROLE} connection limit 0")
    await stage.owner.execute(TERMINATE)
    await stage.until_refused()
    await stage.owner.execute(f"alter role {ROLE} connection limit -1")


async def read_only(stage: Stage) -> None:
    """PostgreSQL: read-only for longer than the deadline."""
    await stage.owner.execute(f"alter role {ROLE} set default_transaction_read_only = on")
    await stage.owner.execute(TERMINATE)
    await stage.until_refused()
    await stage.owner.execute(f"alter role {ROLE} reset default_transaction_read_only")


async def reset(stage: Stage) -> None:
    """Network: every connection reset, three times."""
    for _ in range(3):
        stage.wire.reset()
        await stage.load.more()


async def refused(stage: Stage) -> None:
    """Network: reset and refused for longer than the deadline."""
    stage.wire.refuses = True
    stage.wire.reset()
    await stage.until_refused()
    stage.wire.refuses = False


async def forgotten(stage: Stage) -> None:
    """Network: connections fall silent for ever, new ones work."""
    stage.wire.silence()
    stage.wire.is_silent = False
    await stage.load.more()


async def black_holed(stage: Stage) -> None:
    """Network: a black hole for longer than the deadline."""
    stage.wire.silence()
    await stage.until_refused()
    stage.wire.is_silent = False


@contextlib.contextmanager
def small_disk(stage: Stage) -> Iterator[Path]:
    """A tmpfs, where the server may keep tables."""
    disk = stage.folder / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=16m,mode=777", "none", disk)
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


async def full(stage: Stage) -> None:
    """Disk: full for longer than the deadline, freed."""
    with small_disk(stage) as disk:
        place = disk / "space"
        place.mkdir()
        stage.folder.chmod(0o755)
        shutil.chown(place, stage.server.data.owner())
        await stage.owner.execute(f"create tablespace small location '{place}'")
        await stage.owner.execute("alter table system_event_read set tablespace small")
        await stage.owner.execute("alter index system_event_read_pkey set tablespace small")
        with (disk / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(65_536))
                ballast.flush()
        await stage.until_refused()
        (disk / "ballast").unlink()
        await stage.load.more()
        await stage.owner.execute("alter table system_event_read set tablespace pg_default")
        await stage.owner.execute("alter index system_event_read_pkey set tablespace pg_default")
        await stage.owner.execute("drop tablespace small")


@pytest.mark.parametrize(
    "fault",
    [
        *(killed, restarted, stopped, terminated, frozen, locked, exhausted, read_only, full),
        *(reset, refused, forgotten, black_holed),
    ],
)
async def test_a_fault(
    fault: Fault,
    own: Cluster,
    wire: Wire,
    tmp_path: Path,
    folder: Path,
    table: Callable[[str, Load, float], None],
) -> None:
    """What is acknowledged is stored, nobody waits too long, it is over soon, nothing is left."""
    owner = await asyncpg.connect(own.url())
    url = f"postgresql://{ROLE}@127.0.0.1:{wire.port}/postgres"
    async with serving(tmp_path, url) as process, aiohttp.ClientSession() as session:
        load = Load(marking(session, process.base), PAUSE)
        async with load:
            await fault(Stage(own, wire, owner, load, folder))
            since = asyncio.get_running_loop().time()
            took = await load.well(since)
        assert fault.__doc__ is not None
        table(fault.__doc__.rstrip("."), load, took)
        assert set(load.refused) <= {503}
        assert load.slowest < DEADLINE + LATE
        assert took < WELL
        assert load.acknowledged <= marked(own)
        await nothing_left_open(own, process)
        assert await process.ended(signal.SIGTERM) == 0
    while psql(own.url(), OF_OURS) != "0\n":
        await asyncio.sleep(0.05)
    owner.terminate()


async def nothing_left_open(own: Cluster, process: Process) -> None:
    """Wait until the service has as many connections as the server has of it, and all are idle."""
    service = psutil.Process(process.process.pid)
    listening = {process.port, int(process.admin.rpartition(":")[2])}
    while True:
        ours = [it for it in service.net_connections("tcp") if it.laddr.port not in listening]
        there = psql(own.url(), f"{OF_OURS} and state = 'idle'", OF_OURS).split()
        if {str(len(ours))} == set(there):
            return
        await asyncio.sleep(0.05)


async def fails_over(
    fail: Callable[[Cluster], None], own: Cluster, folder: Path
) -> tuple[Load, float]:
    """Fail the primary, promote its standby, and see all as in test_a_fault."""
    loop = asyncio.get_running_loop()
    with standby_of(own) as standby:
        hosts = f"127.0.0.1:{own.port},127.0.0.1:{standby.port}"
        url = f"postgresql://{ROLE}@{hosts}/postgres?target_session_attrs=primary"
        async with serving(folder, url) as process, aiohttp.ClientSession() as session:
            load = Load(marking(session, process.base), PAUSE)
            async with load:
                await asyncio.to_thread(fail, own)
                arguments = ("-w", "-D", standby.data, "promote")
                await asyncio.to_thread(standby.run, "pg_ctl", *arguments)
                took = await load.well(loop.time())
            assert load.acknowledged <= marked(standby)
            assert await process.ended(signal.SIGTERM) == 0
        while psql(standby.url(), OF_OURS) != "0\n":
            await asyncio.sleep(0.05)
    return load, took


@pytest.mark.parametrize("fail", [Cluster.kill, Cluster.freeze])
async def test_a_failover(
    fail: Callable[[Cluster], None],
    own: Cluster,
    wire: Wire,
    tmp_path: Path,
    table: Callable[[str, Load, float], None],
) -> None:
    """The primary dies, or hangs, and its standby is promoted."""
    load, took = await fails_over(fail, own, tmp_path)
    how = "killed" if fail is Cluster.kill else "frozen"
    table(f"PostgreSQL: primary {how}, its standby promoted", load, took)
    assert set(load.refused) <= {503}
    assert load.slowest < DEADLINE + LATE
    assert took < WELL


async def test_the_clock_jumps(
    own: Cluster, wire: Wire, tmp_path: Path, table: Callable[[str, Load, float], None]
) -> None:
    """An hour forward, and two back: no deadline is of the clock, and no request notices."""
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = (
        "env",
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        *("FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"),
    )
    async with (
        serving(tmp_path, own.url(user=ROLE), *faked) as process,
        aiohttp.ClientSession() as session,
    ):
        load = Load(marking(session, process.base), PAUSE)
        async with load:
            for jump in ("+3600", "-3600"):
                clock.write_text(jump)
                took = await load.well(asyncio.get_running_loop().time())
                async with session.get(process.base) as answer:
                    assert_jumped(answer.headers["Date"], int(jump))
        table("Clock: an hour forward, then two back", load, took)
        assert load.refused == []
        assert load.slowest < DEADLINE
        assert load.acknowledged <= marked(own)
        assert await process.ended(signal.SIGTERM) == 0


def assert_jumped(date: str, seconds: int) -> None:
    """The service sees another time than we do."""
    seen = parsedate_to_datetime(date).timestamp() - time.time()
    assert abs(seen - seconds) < 60


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_end_in_mid_load(
    workers: str,
    own: Cluster,
    wire: Wire,
    tmp_path: Path,
    table: Callable[[str, Load, float], None],
) -> None:
    """SIGTERM of the only instance, which is started again: an answer or no connection."""
    ports = {"SERVER_PORT": str(free_port()), "ADMIN_PORT": str(free_port()), "SERVER_DRAIN": "1"}
    more = {**ports, "SERVER_WORKERS": workers}
    url = own.url(user=ROLE)
    async with aiohttp.ClientSession() as session:
        async with serving(tmp_path, url, **more) as process:
            load = Load(marking(session, process.base), PAUSE)
            await load.__aenter__()
            assert await process.ended(signal.SIGTERM) == 0
        since = asyncio.get_running_loop().time()
        async with serving(tmp_path, url, **more) as process:
            took = await load.well(since)
            await load.__aexit__()
            assert await process.ended(signal.SIGTERM) == 0
    table(f"Service of {workers}: SIGTERM, started again", load, took)
    assert set(load.refused) <= {NO_ANSWER}
    assert load.acknowledged <= marked(own)


async def test_ten_migrate_at_once(own: Cluster, tmp_path: Path) -> None:
    """One is killed halfway; the others do what is left, once, and all of them succeed."""
    name = f"anew_{free_port()}"
    psql(own.url(), f"create database {name}")
    owner = await asyncpg.connect(own.url(name))
    environ = {"DATABASE_URL": own.url(name), "AUTH_SECRET": SECRET}
    async with contextlib.AsyncExitStack() as stack:
        # Halfway: the tables are there, and the views have to wait for one that is locked.
        await owner.execute("create table workspace_user (workspace_id text, user_id text)")
        async with owner.transaction():
            await owner.execute("lock table workspace_user in access exclusive mode")
            first = await stack.enter_async_context(run("migrate", cwd=tmp_path, environ=environ))
            while not await owner.fetch("select from pg_locks where not granted"):
                assert first.process.returncode is None
            others = [
                await stack.enter_async_context(run("migrate", cwd=tmp_path, environ=environ))
                for _ in range(9)
            ]
            waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            while await owner.fetchval(waiting) < len(others):
                await asyncio.sleep(0.05)
            first.process.kill()
            await first.process.wait()
        statuses = [await other.ended() for other in others]
        assert statuses == [0] * 9, [other.errors for other in others]
    applied = await owner.fetch("select migration_id from system_event_read_migration")
    assert sorted(row[0] for row in applied) == sorted(migration_names() | {VIEWS})
    assert await owner.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0
    await owner.close()
    psql(own.url(), f"drop database {name}")
