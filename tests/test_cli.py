"""The command line, as processes: starting, waiting, stopping, and what is told when it cannot."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.__main__ import main
from tests.cluster import Cluster, free_port
from tests.conftest import HERE, ROLE, SECRET, Start, bearer, prepare, psql
from tests.process import Answer, Process, run

PASSWORD = "tell-nobody-7f3a"
LOCKED = "locked"  # a role that needs a password
UNTRUSTED = "untrusted"  # a role without grants
GOOD = {"AUTH_SECRET": SECRET, "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
SUCCESS = (200, {"success": True})
QUICK = {"LIMITS_DEADLINE": "1", "LIMITS_BODY_DEADLINE": "1", "DATABASE_STATEMENT_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that tests here may stop and freeze, with a role that needs a password."""
    cluster = Cluster()
    access = cluster.data / "pg_hba.conf"
    access.write_text(f"host all {LOCKED} all scram-sha-256\n" + access.read_text())
    cluster.start()
    psql(cluster.url(), f"create role {LOCKED} login password 'right'", "create database events")
    psql(cluster.url(), f"create role {ROLE} login", f"create role {UNTRUSTED} login")
    prepare(cluster.url("events"))
    yield cluster
    cluster.remove()


def on(cluster: Cluster, **more: str) -> dict[str, str]:
    """Variables of a service on the migrated database of a cluster."""
    return {"AUTH_SECRET": SECRET, "DATABASE_URL": cluster.url("events", ROLE)} | more


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A session with the database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def says_in_one_line(process: Process, text: str) -> None:
    """The command ends by itself with status 1; what it says last is one line that begins so."""
    line = await process.says("systemevent-read: ", instead_of="waiting for the database")
    assert line.startswith(f"systemevent-read: {text}")
    assert await process.ended() == 1
    assert process.errors[-1] == line
    assert PASSWORD not in "".join(process.errors)


@dataclass
class Command:
    """The command line, in this process: what ends before it serves needs no other."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, arguments: str, environ: Mapping[str, str]) -> tuple[int, str, str]:
        """Run it with these variables, named without the prefix: status, stdout, stderr."""
        for name, value in environ.items():
            self.monkeypatch.setenv(f"SYSTEMEVENT_{name}", value)
        status = main(arguments.split())
        return status, *self.capsys.readouterr()

    def refuses(self, arguments: str, environ: Mapping[str, str], text: str) -> None:
        """The status is 1, and all there is to read is one line, which begins so."""
        status, output, errors = self(arguments, environ)
        assert (status, output, errors.count("\n")) == (1, "", 1), errors
        assert errors.startswith(f"systemevent-read: {text}")
        assert PASSWORD not in errors


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Command]:
    """The command line, in an empty folder."""

    async def serve(*_: object) -> None:
        raise AssertionError("it serves")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.__main__._serve_alone", serve)
    monkeypatch.setattr("service.logs.set_up", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield Command(monkeypatch, capsys)
    signal.signal(signal.SIGTERM, before)


# What cannot work ends at once


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        ("serve --config no.toml", {}, "no.toml: no such file"),
        ("serve", GOOD | {"AUTH_SECRET": PASSWORD}, "auth.secret: shorter than 32 bytes"),
        ("serve --workers 0", GOOD, "server.workers: "),
        ("serve", GOOD | {"SERVER_HOST": "a..b"}, "server.host: "),
        ("serve", GOOD | {"SERVER_HOST": "192.0.2.1"}, "server.host: "),
        ("serve", GOOD | {"ADMIN_HOST": "192.0.2.1"}, "admin.host: "),
        ("serve", {"DATABASE_DATA_DIR": "/dev/null/x"}, "database.data_dir: /dev/null/x: Not a di"),
        ("token ada", {"DATABASE_DATA_DIR": "/dev/null/x"}, "database.data_dir: /dev/null/x: Not"),
        ("token ada", {"AUTH_ALGORITHMS": "RS256", "AUTH_JWKS_URL": "https://x"}, "auth.algorit"),
        ("migrate", {"AUTH_SECRET": SECRET}, "database.url: missing; embedded mode migrates"),
        ("migrate", GOOD, "database.url: "),
        ("migrate", GOOD | {"DATABASE_URL": f"postgresql://u:{PASSWORD}@[::1/x"}, "database.url: "),
        ("migrate", GOOD | {"DATABASE_URL": f"postgresql://u:{PASSWORD}%z@h/x"}, "database.url: "),
    ],
)
def test_what_cannot_work(
    command: Command, arguments: str, environ: dict[str, str], text: str
) -> None:
    """A command that cannot do what it is asked says why in one line, with the key's name."""
    ports = {"SERVER_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
    command.refuses(arguments, ports | environ, text)


@pytest.mark.parametrize("section", ["SERVER", "ADMIN"])
def test_a_port_is_taken(section: str, command: Command, tmp_path: Path) -> None:
    """The key of the port that is taken is named, before anything else is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = {"SERVER_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
        where = f"{section.lower()}.port: cannot listen on 127.0.0.1:{port}: Address already"
        command.refuses("serve", ports | {f"{section}_PORT": port}, where)
    assert list(tmp_path.iterdir()) == []


def test_migrating_with_a_wrong_password(command: Command, own: Cluster) -> None:
    """The database's refusal is told, the password is not."""
    url = own.url("events", f"{LOCKED}:{PASSWORD}")
    text = "database.url: "
    command.refuses("migrate", {"DATABASE_URL": url, "AUTH_SECRET": SECRET}, text)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}/x@127.0.0.1:1/name",
        "postgresql://user@127.0.0.1:1/name?sslmode=bogus",
        "postgresql://user@127.0.0.1:1/name?sslmode=verify-full&sslrootcert=no.pem",
    ],
)
async def test_a_url_that_is_none(url: str, tmp_path: Path) -> None:
    """A URL that can never connect is not waited for; the key is named, and no part of it told."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": url}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        await says_in_one_line(process, "database.url: ")


async def test_one_port_for_both(tmp_path: Path) -> None:
    """The two ports must differ."""
    port = str(free_port())
    environ = GOOD | {"SERVER_PORT": port, "ADMIN_PORT": port}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        line = await process.says("systemevent-read: ")
        assert re.match("systemevent-read: (server|admin).port: cannot listen", line)
        assert await process.ended() == 1


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (f"{LOCKED}:{PASSWORD}", "events"),
        (ROLE, "nothing"),
        ("who", "events"),
        (UNTRUSTED, "events"),
    ],
)
async def test_what_waiting_does_not_mend(
    user: str, name: str, own: Cluster, tmp_path: Path
) -> None:
    """A wrong password, an unknown database or user, a missing grant: serve ends at once."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": own.url(name, user)}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        await says_in_one_line(process, "database.url: ")


SOME = "delete from system_event_read_migration where migration_id = '0003_views'"
ALL = "drop schema public cascade; create schema public; grant usage on schema public to public"


@pytest.mark.parametrize(
    ("missing", "workers"),
    [(SOME, "1"), (ALL, "1"), (ALL, "2")],
    ids=["some", "all", "two workers"],
)
async def test_serve_wants_a_current_schema(
    missing: str, workers: str, cluster: Cluster, tmp_path: Path
) -> None:
    """On a schema that lacks migrations, some or all of them, serve ends and says: migrate."""
    name = f"behind_{free_port()}"
    psql(cluster.url(), f"create database {name} template template_migrated")
    psql(cluster.url(name), missing)
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": cluster.url(name, ROLE)}
    async with run("serve", "--workers", workers, cwd=tmp_path, environ=environ) as process:
        assert await process.ended() in ((1,) if workers == "1" else (1, 3))
    assert "run: systemevent-read migrate" in "".join(process.errors)
    psql(cluster.url(), f"drop database {name}")


# Migrating, signing


def test_migrating_twice(command: Command, cluster: Cluster) -> None:
    """The first run applies all migrations and names them; the second has nothing to do."""
    psql(cluster.url(), "create database migrated_twice")
    environ = {"DATABASE_URL": cluster.url("migrated_twice"), "AUTH_SECRET": SECRET}
    names = "0001_platform, 0002_system_event_read, 0003_views"
    assert command("migrate", environ) == (0, f"applied: {names}\n", "")
    assert command("migrate", environ) == (0, "applied: nothing, the schema is up to date\n", "")


async def test_migrating_interrupted(cluster: Cluster, tmp_path: Path) -> None:
    """A migration that is stopped before it is done does not report success."""
    environ = {"DATABASE_URL": cluster.url(), "AUTH_SECRET": SECRET}
    async with (
        connected(cluster.url()) as holder,
        run("migrate", cwd=tmp_path, environ=environ) as process,
    ):
        await holder.execute((HERE.parent / "sql/lock_migrations.sql").read_text())
        while not await holder.fetch("select from pg_stat_activity where wait_event = 'advisory'"):
            assert process.process.returncode is None
        assert await process.ended(signal.SIGTERM) != 0


async def test_a_token_that_works(command: Command, start: Start) -> None:
    """`token` signs with the secret, for the service that has the same."""
    client = await start()
    status, token, _ = command("token alice", GOOD)
    assert status == 0
    headers = {"Authorization": f"Bearer {token.strip()}"}
    answer = await client.post("/systemevent/read", json={"id": 1}, headers=headers)
    assert (answer.status, await answer.json()) == SUCCESS


# Starting before the database, stopping while it is stuck


async def test_the_database_comes_later(own: Cluster, tmp_path: Path) -> None:
    """Without its database the service is alive and not ready, and answers 503; with it, 200."""
    own.stop()
    async with run("serve", cwd=tmp_path, environ=on(own, **QUICK)) as process:
        await process.says("waiting for the database")
        assert (await process.get("/live"), await process.get("/ready")) == (200, 503)
        answer: Answer | None = None
        while answer is None:
            with contextlib.suppress(aiohttp.ClientConnectorError):  # the port is not open yet
                answer = await process.post()
        status, body = answer
        assert (status, list(body)) == (503, ["error"])
        own.start()
        await process.says('"ready"')
        assert (await process.get("/live"), await process.get("/ready")) == (200, 200)
        assert await process.post() == SUCCESS
        assert await process.ended(signal.SIGTERM) == 0


async def serving(process: Process) -> None:
    """Wait until the service is ready and its port open."""
    await process.says('"ready"')
    while await process.get("/ready") != 200:
        pass


async def in_flight(process: Process, cluster: Cluster, body: bytes) -> "asyncio.Task[Answer]":
    """Send a request, and wait until the database holds it up."""
    request = asyncio.create_task(process.post(body))
    waiting = "select from pg_stat_activity where wait_event = 'relation'"
    async with connected(cluster.url()) as watcher:
        while not await watcher.fetch(waiting):
            assert not request.done()
    return request


async def closed(process: Process) -> None:
    """Wait until nobody new is let in."""
    with contextlib.suppress(ConnectionError):
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.close()


async def test_sigterm_finishes_what_is_in_flight(own: Cluster, tmp_path: Path) -> None:
    """A request in flight is answered, a stalled body is told so; nobody new is let in."""
    async with (
        connected(own.url("events")) as holder,
        run("serve", cwd=tmp_path, environ=on(own, LIMITS_BODY_DEADLINE="1")) as process,
    ):
        await serving(process)
        async with holder.transaction():
            await holder.execute("lock table system_event_read in exclusive mode")
            held = await in_flight(process, own, b'{"id":2}')
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(
                b"POST /systemevent/read HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Authorization: " + bearer()["Authorization"].encode() + b"\r\n"
                b'Content-Length: 100\r\n\r\n{"id":'
            )
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            process.process.send_signal(signal.SIGTERM)
            await closed(process)
        assert await held == SUCCESS
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert await process.ended() == 0


async def test_a_frozen_database_holds_up_no_exit(own: Cluster, tmp_path: Path) -> None:
    """With a database that hangs, what is in flight is told 503 and the service ends with 0."""
    async with run("serve", cwd=tmp_path, environ=on(own, **QUICK)) as process:
        await serving(process)
        assert await process.post() == SUCCESS
        own.freeze()
        held = asyncio.create_task(process.post())
        process.process.send_signal(signal.SIGTERM)
        await closed(process)
        with contextlib.suppress(aiohttp.ClientError):  # it may not have got in
            assert (await held)[0] == 503
        assert await process.ended() == 0


# Several workers


async def ready(process: Process, count: int) -> list[int]:
    """Wait for that many more workers, and return their pids."""
    lines = [await process.says("Booting worker with pid: ") for _ in range(count)]
    for _ in lines:
        await process.says('"ready"')
    return [int(re.findall(r"pid: (\d+)", line)[0]) for line in lines]


def alive(pid: int) -> bool:
    """Whether a process is there."""
    return Path(f"/proc/{pid}").exists()


async def test_two_workers(own: Cluster, tmp_path: Path) -> None:
    """Each answers, one that dies is replaced, SIGHUP replaces both, SIGTERM ends all."""
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=on(own)) as process:
        workers = await ready(process, 2)
        for held in workers:
            os.kill(held, signal.SIGSTOP)
            assert await process.post() == SUCCESS
            os.kill(held, signal.SIGCONT)
        os.kill(workers[0], signal.SIGKILL)
        workers[:1] = await ready(process, 1)
        assert await process.post() == SUCCESS

        process.process.send_signal(signal.SIGHUP)
        reloaded = asyncio.create_task(ready(process, 2))
        while any(map(alive, workers)):
            # aiohttp closes a connection that comes just as a worker goes; the next is answered.
            with contextlib.suppress(aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                assert await process.post() == SUCCESS
        await reloaded
        assert await process.post() == SUCCESS
        assert await process.ended(signal.SIGTERM) == 0


async def test_a_reload_that_is_refused(own: Cluster, tmp_path: Path) -> None:
    """SIGHUP with a mistake in config.toml is complained of; the old configuration serves on."""
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=on(own)) as process:
        await ready(process, 2)
        (tmp_path / "config.toml").write_text("[server]\nprot = 1\n")
        process.process.send_signal(signal.SIGHUP)
        await process.says("server.prot: no such key")
        assert await process.post() == SUCCESS
        assert await process.ended(signal.SIGTERM) == 0


async def test_workers_name_requests_apart(own: Cluster, tmp_path: Path) -> None:
    """No two requests share an id, whichever worker has them."""
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=on(own)) as process:
        workers = await ready(process, 2)
        ids = []
        for held in workers:
            os.kill(held, signal.SIGSTOP)
            async with aiohttp.request("GET", f"{process.base}/openapi.yaml") as answer:
                ids.append(answer.headers["X-Request-ID"])
            os.kill(held, signal.SIGCONT)
        assert len(set(ids)) == 2
        assert await process.ended(signal.SIGTERM) == 0


# Trying it out


async def shell(text: str) -> str:
    """What a line prints when it is pasted into a shell."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Callable[[], bool]]:
    """Whether an embedded PostgreSQL runs. One that is left over is stopped."""
    note = tmp_path / ".data/postgres/postmaster.pid"
    yield note.exists
    if note.exists():
        os.kill(int(note.read_text().split()[0]), signal.SIGQUIT)


async def test_trying_it_out(tmp_path: Path, embedded: Callable[[], bool]) -> None:
    """Without a database URL: the lines it prints work, again and again, and after a restart.

    Ctrl-C stops all of it, and so does closing the terminal.
    """
    seen: list[str] = []
    for number in (signal.SIGINT, signal.SIGHUP):
        async with run("serve", cwd=tmp_path, environ={}) as process:
            hint = await process.prints("Ctrl-C stops all of it.")
            curl, look = re.findall(r"^((?:  .*\n)+)", hint, re.MULTILINE)[1:]
            for _ in range(2):
                assert '{"success":true}' in await shell(curl)
                seen.append(await shell(look))
            async with run("serve", cwd=tmp_path, environ={}) as another:
                where = f"database.data_dir: {tmp_path}/.data is in use by another process"
                await says_in_one_line(another, where)
            assert "analytical      | ada     |      199 | " in seen[0]
            assert len(set(seen)) == 1
            assert embedded()
            assert await process.ended(number) == 0
        assert not embedded()


async def test_trying_it_out_with_workers(tmp_path: Path, embedded: Callable[[], bool]) -> None:
    """Workers share the embedded database, and it stops after the last of them."""
    async with run("serve", "--workers", "2", cwd=tmp_path, environ={}) as process:
        hint = await process.prints("Ctrl-C stops all of it.")
        workers = await ready(process, 2)
        curl = re.findall(r"^((?:  .*\n)+)", hint, re.MULTILINE)[1]
        os.kill(workers[0], signal.SIGTERM)
        await ready(process, 1)
        assert '{"success":true}' in await shell(curl)
        assert await process.ended(signal.SIGTERM) == 0
    assert not embedded()


async def test_psql_without_a_database(tmp_path: Path) -> None:
    """`make psql` says that nothing runs."""
    program = (sys.executable, "-m", "service.embedded")
    async with run(cwd=tmp_path, environ={}, program=program) as process:
        await says_in_one_line(process, "database.data_dir: ")
