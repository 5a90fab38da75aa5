"""Reloads, restarts and what goes wrong in between: nothing ends a service that works."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from yarl import URL

from tests.conftest import ROLE, ROOT, SECRET, bearer, psql, serving_postgres
from tests.support.cluster import Cluster
from tests.support.process import Process, run

SUCCESS = (200, {"success": True})
LONG = "300"  # seconds: what ends within the test ends without waiting for it
both = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL where the service's role needs a password."""
    with serving_postgres(f"alter role {ROLE} password 'right'", name="events") as cluster:
        access = cluster.data / "pg_hba.conf"
        access.write_text(f"host all {ROLE} all scram-sha-256\n" + access.read_text())
        psql(cluster.url(), "select pg_reload_conf()")
        yield cluster


@pytest.fixture
def mended(own: Cluster) -> Iterator[Callable[[], None]]:
    """Gives the role back what a test took from it; at the end, too."""

    def mend() -> None:
        psql(own.url(), f"alter role {ROLE} login password 'right'")
        psql(own.url("events"), f"grant select, insert, delete on system_event_read to {ROLE}")

    yield mend
    mend()


@contextlib.asynccontextmanager
async def serving(
    own: Cluster,
    folder: Path,
    workers: str,
    *,
    program: tuple[str, ...] = (sys.executable, "-m", "service"),
    stdin: int | None = None,
    **environ: str,
) -> AsyncIterator[Process]:
    """A service, up to its first answers, with its secret in the file `secret` of the folder."""
    (folder / "secret").write_text(SECRET)
    url = own.url("events", f"{ROLE}:right")
    environ = {"AUTH_SECRET_FILE": "secret", "DATABASE_URL": url, **environ}
    arguments = ("serve", "--workers", workers)
    async with run(
        *arguments, cwd=folder, environ=environ, program=program, stdin=stdin
    ) as process:
        await (process.says('"ready"') if workers == "1" else process.ready(int(workers)))
        assert await process.get("/ready") == 200
        yield process


async def reload(process: Process, workers: str) -> None:
    """Reload, up to when what is new serves."""
    process.process.send_signal(signal.SIGHUP)
    await (process.says('"reloaded"') if workers == "1" else process.ready(int(workers)))


def children(process: Process) -> set[int]:
    """The workers."""
    pid = process.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


async def use_all(process: Process) -> set[int]:
    """Have each worker mark something, so that it has a connection for that; the workers."""
    workers = children(process)
    for held in workers:
        os.kill(held, signal.SIGSTOP)
        assert await process.post() == SUCCESS
        os.kill(held, signal.SIGCONT)
    return workers


async def ask(url: str) -> tuple[int, str]:
    """GET, on a connection of its own: status and body."""
    async with aiohttp.request("GET", url) as answer:
        return answer.status, await answer.text()


# Nothing ends a service that works


def no_file(folder: Path, _: Cluster) -> str:
    (folder / "secret").unlink()
    return "auth.secret_file: No such file"


def short_file(folder: Path, _: Cluster) -> str:
    (folder / "secret").write_text("short")
    return "auth.secret_file: shorter than 32 bytes"


def mistake(folder: Path, _: Cluster) -> str:
    (folder / "config.toml").write_text("[server]\nprot = 1\n")
    return "server.prot: no such key"


def no_login(_: Path, own: Cluster) -> str:
    psql(own.url(), f"alter role {ROLE} nologin")
    return "not permitted to log in"


def other_password(_: Path, own: Cluster) -> str:
    psql(own.url(), f"alter role {ROLE} password 'rotated'")
    return "password authentication failed"


def no_grant(_: Path, own: Cluster) -> str:
    psql(own.url("events"), f"revoke insert on system_event_read from {ROLE}")
    return "permission denied"


Disturb = Callable[[Path, Cluster], str]


@both
@pytest.mark.parametrize("disturb", [no_file, short_file, mistake, no_login, other_password])
async def test_a_reload_that_cannot_work(
    disturb: Disturb,
    workers: str,
    own: Cluster,
    tmp_path: Path,
    mended: Callable[[], None],
) -> None:
    """It is complained of, and nothing is replaced: what serves goes on with what it had."""
    async with serving(own, tmp_path, workers) as process:
        before = await use_all(process)
        assert await process.post() == SUCCESS
        reason = disturb(tmp_path, own)
        process.process.send_signal(signal.SIGHUP)
        assert reason in await process.says("not reloaded: ")
        assert await process.post() == SUCCESS
        assert children(process) == before
        assert await process.ended(signal.SIGTERM) == 0


@both
async def test_a_reload_to_another_address(workers: str, own: Cluster, tmp_path: Path) -> None:
    """One that is taken changes nothing; one that is free replaces the one before."""
    async with serving(own, tmp_path, workers) as process:
        (tmp_path / "config.toml").write_text('[server]\nhost = "127.0.0.2"\n')
        with socket.socket() as holder:
            holder.bind(("127.0.0.2", process.port))
            holder.listen()
            process.process.send_signal(signal.SIGHUP)
            assert "server.port: cannot listen" in await process.says("not reloaded: ")
            assert await process.post() == SUCCESS
        await reload(process, workers)
        path = f":{process.port}/openapi.yaml"
        while True:  # those that serve there no more
            with contextlib.suppress(aiohttp.ClientConnectorError):
                await ask(f"http://127.0.0.1{path}")
                continue
            break
        assert (await ask(f"http://127.0.0.2{path}"))[0] == 200
        assert await process.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize("disturb", [no_login, other_password, no_grant, no_file, short_file])
async def test_workers_end_at_a_bad_moment(
    disturb: Disturb, own: Cluster, tmp_path: Path, mended: Callable[[], None]
) -> None:
    """One that cannot serve yet leaves callers to one that can; without any it is 503, not the end.

    What a file of keys holds does not matter: the keys are those that the master knows.
    """
    quick = "1"
    async with serving(
        own, tmp_path, "2", LIMITS_DEADLINE=quick, LIMITS_BODY_DEADLINE=quick
    ) as process:
        before = await use_all(process)
        of_keys = disturb in (no_file, short_file)
        reason = disturb(tmp_path, own)
        for number in range(2):
            os.kill(before.pop(), signal.SIGKILL)
            await process.says("Booting worker")
            await process.says("keys before stay in force" if of_keys else reason)
            if of_keys or (number == 0 and disturb is not no_grant):
                for _ in range(20):
                    assert await process.post() == SUCCESS
        if not of_keys:
            status, body = await process.post()
            assert (status, list(body)) == (500 if disturb is no_grant else 503, ["error"])
            status, text = await ask(process.admin + "/ready")
            assert (status, reason in text) == (503, True)
            mended()
            for _ in range(2):
                await process.says('"ready"')
        assert await process.post() == SUCCESS
        assert await process.ended(signal.SIGTERM) == 0


async def test_workers_that_end_again_and_again(own: Cluster, tmp_path: Path) -> None:
    """Each is replaced, after a pause that grows; and one of them that stays is enough."""
    async with serving(own, tmp_path, "2") as process:
        victim = children(process).pop()
        for pause in ("0.2", "0.4", "0.8"):
            others = children(process)
            os.kill(victim, signal.SIGKILL)
            await process.says(f"the next in {pause} s")
            assert await process.post() == SUCCESS
            await process.says("Booting worker")
            (victim,) = children(process) - others
        assert await process.ended(signal.SIGTERM) == 0


# SIGHUP


@both
async def test_a_reload(workers: str, own: Cluster, tmp_path: Path) -> None:
    """The configuration is read again, the process stays, and so do the places in its log."""
    async with serving(own, tmp_path, workers) as process:
        (tmp_path / "config.toml").write_text("[limits]\nmax_ids = 1\n[logging]\nformat = 'text'\n")
        assert await process.post(b'{"ids": [1, 2]}') == SUCCESS
        process.process.send_signal(signal.SIGHUP)
        await process.says(" info ready" if workers == "2" else " info reloaded")
        while (await process.post(b'{"ids": [1, 2]}'))[0] != 400:
            pass
        assert await process.ended(signal.SIGTERM) == 0


@both
async def test_a_hangup_that_is_ignored(workers: str, own: Cluster, tmp_path: Path) -> None:
    """What was started with nohup does not see SIGHUP at all."""
    program = ("nohup", sys.executable, "-m", "service")
    async with serving(own, tmp_path, workers, program=program) as process:
        (tmp_path / "secret").unlink()
        process.process.send_signal(signal.SIGHUP)
        await process.says("auth.secret_file: No such file")  # of the file, each second
        assert await process.post() == SUCCESS
        assert await process.ended(signal.SIGTERM) == 0
    assert not any("not reloaded" in line for line in process.errors)


@both
async def test_the_terminal_is_closed(workers: str, own: Cluster, tmp_path: Path) -> None:
    """Its SIGHUP asks for the end, and no reload: nobody could stop it any more with Ctrl-C."""
    master, slave = os.openpty()
    take_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.executable, [sys.executable, '-m', 'service', *sys.argv[1:]])"
    )
    program = (sys.executable, "-c", take_terminal)
    async with serving(own, tmp_path, workers, program=program, stdin=slave) as process:
        os.close(slave)
        os.close(master)
        assert await process.ended() == 0


@pytest.fixture
def namespace() -> tuple[str, ...]:
    """A program that runs another as process 1."""
    program = ("unshare", "--pid", "--fork", "--mount-proc")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*program, "true"], check=False).returncode
    ):
        pytest.skip("no process may be process 1 here")
    return program


async def test_migrating_as_process_1(
    namespace: tuple[str, ...], own: Cluster, tmp_path: Path
) -> None:
    """In a container, where a signal without a handler is ignored, SIGTERM ends it."""
    environ = {"DATABASE_URL": own.url("events"), "AUTH_SECRET": SECRET}
    program = (*namespace, sys.executable, "-m", "service")
    holder = await asyncpg.connect(own.url("events"))
    try:
        await holder.execute("begin")
        await holder.execute((ROOT / "sql/lock_migrations.sql").read_text())
        async with run("migrate", cwd=tmp_path, environ=environ, program=program) as process:
            while not await holder.fetch("select from pg_locks where not granted"):
                assert process.process.returncode is None
            os.kill(children(process).pop(), signal.SIGTERM)
            assert await process.ended() != 0
    finally:
        await holder.close()


# Nobody notices


@both
async def test_the_operators_port_during_reloads(
    workers: str, own: Cluster, tmp_path: Path
) -> None:
    """/ready says yes and nothing else, while the service works."""
    async with serving(own, tmp_path, workers, SERVER_DRAIN="1") as process:
        answers = set()
        done = asyncio.Event()

        async def probe() -> None:
            while not done.is_set():
                answers.add(await ask(process.admin + "/ready"))

        probing = asyncio.create_task(probe())
        for _ in range(3):
            before = children(process)
            await reload(process, workers)
            while before & children(process) and workers == "2":
                await asyncio.sleep(0)
        done.set()
        await probing
        assert answers == {(200, '{"ready": true}')}
        assert await process.ended(signal.SIGTERM) == 0


@both
async def test_a_probe_is_idle_during_a_reload(workers: str, own: Cluster, tmp_path: Path) -> None:
    """Its connection may be used once more as well, though no caller has one."""
    async with serving(own, tmp_path, workers, SERVER_DRAIN=LONG) as process:
        address = URL(process.admin)
        reader, writer = await asyncio.open_connection(address.host, address.port)

        async def asked() -> bytes:
            writer.write(b"GET /ready HTTP/1.1\r\nHost: probe\r\n\r\n")
            return await reader.readuntil(b'{"ready": true}')

        assert b"Connection: close" not in await asked()
        await reload(process, workers)
        await asyncio.sleep(1)  # for those before to end, if they would
        assert b"Connection: close" in await asked()
        writer.close()
        assert await process.ended(signal.SIGINT) == 0


async def connect(process: Process) -> aiohttp.ClientSession:
    """A client that keeps one connection open, which has been used once."""
    session = aiohttp.ClientSession(process.base, connector=aiohttp.TCPConnector(limit=1))
    async with session.post("/systemevent/read", json={"id": 1}, headers=bearer()) as answer:
        assert await answer.json() == SUCCESS[1]
        assert "Connection" not in answer.headers
    return session


async def is_last(session: aiohttp.ClientSession) -> bool:
    """Whether an answer, on the connection that is open, says that it is the last one there."""
    async with session.post("/systemevent/read", json={"id": 1}, headers=bearer()) as answer:
        assert await answer.json() == SUCCESS[1]
        return answer.headers.get("Connection") == "close"


def one(process: Process) -> None:
    process.process.send_signal(signal.SIGTERM)


def all_of_them(process: Process) -> None:
    """As systemd does, where it is not told otherwise."""
    os.killpg(process.process.pid, signal.SIGTERM)


@both
@pytest.mark.parametrize("tell", [one, all_of_them])
async def test_draining(
    tell: Callable[[Process], None], workers: str, own: Cluster, tmp_path: Path
) -> None:
    """After SIGTERM /ready says no, callers are let in and told to leave; SIGINT ends the wait."""
    async with serving(own, tmp_path, workers, SERVER_DRAIN=LONG) as process:
        sessions = [await connect(process) for _ in range(4)]
        tell(process)
        while (answer := await ask(process.admin + "/ready"))[0] == 200:
            pass
        assert answer == (503, '{"error":"shutting down"}')
        for session in sessions:
            assert await is_last(session)  # on the connection before the signal
            assert await is_last(session)  # on a new one
            await session.close()
        assert await process.ended(signal.SIGINT) == 0


@both
async def test_somebody_waits_for_the_end(workers: str, own: Cluster, tmp_path: Path) -> None:
    """Ctrl-C waits for nobody but those who wait for an answer."""
    async with (
        serving(own, tmp_path, workers, SERVER_DRAIN=LONG) as process,
        await connect(process),
    ):
        os.killpg(process.process.pid, signal.SIGINT)
        assert await process.ended() == 0


@both
async def test_a_connection_is_idle_during_a_reload(
    workers: str, own: Cluster, tmp_path: Path
) -> None:
    """It may be used once more, and its client is told; then it is a client of what is new."""
    async with serving(own, tmp_path, workers, SERVER_DRAIN=LONG) as process:
        async with await connect(process) as session:
            await reload(process, workers)
            while not await is_last(session):
                await asyncio.sleep(0)
            while await is_last(session):  # those before still take callers for a moment
                await asyncio.sleep(0)
        assert await process.ended(signal.SIGINT) == 0


@pytest.mark.late
@both
async def test_reloads_under_load(workers: str, own: Cluster, tmp_path: Path) -> None:
    """Callers who keep their connections, and some who do not, all get their 200."""
    async with serving(own, tmp_path, workers, SERVER_DRAIN="2") as process:
        done = asyncio.Event()
        answered = []

        async def call(*, keeps: bool) -> None:
            connector = aiohttp.TCPConnector(force_close=not keeps)
            async with aiohttp.ClientSession(process.base, connector=connector) as session:
                while not done.is_set():
                    await is_last(session)
                    answered.append(1)

        calling = [asyncio.create_task(call(keeps=n % 4 > 0)) for n in range(24)]
        for _ in range(3):
            wanted = len(answered) + 200
            while len(answered) < wanted:
                await asyncio.sleep(0.01)
                assert not any(task.done() for task in calling)
            await reload(process, workers)
        done.set()
        await asyncio.gather(*calling)
        assert await process.ended(signal.SIGTERM) == 0
