"""The command line, as processes: starting, waiting, stopping, and what is told when it cannot."""

import asyncio
import contextlib
import json
import os
import pty
import re
import shlex
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
from service.database.migrations import migrate
from tests.conftest import (
    ROLE,
    ROOT,
    SECRET,
    Start,
    bearer,
    connect,
    new_database,
    new_role,
    prepare,
    psql,
)
from tests.support.cluster import Cluster, free_port
from tests.support.process import PATIENCE, Answer, Process, run

PASSWORD = "tell-nobody-7f3a"
LOCKED = "locked"  # a role that needs a password
UNTRUSTED = "untrusted"  # a role without grants
GOOD = {"AUTH_SECRET": SECRET, "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
DEMO = (
    "database.url: missing; set SYSTEMEVENT_DATABASE_URL. Without it this is demo mode, "
    "which gives tokens to anybody, and refuses"
)
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
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def says_in_one_line(process: Process, text: str) -> None:
    """The command ends by itself with status 1; what it says last is one error that begins so."""
    line = await process.says('"level":"error"', instead_of="database lost")
    assert json.loads(line)["message"].startswith(text)
    assert await process.ended() == 1
    assert process.errors[-1] == line
    assert PASSWORD not in "".join(process.errors)


@dataclass
class Command:
    """The command line, in this process: what ends before it serves needs no other."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture

    def __call__(self, arguments: str, environ: Mapping[str, str]) -> tuple[int, str, str]:
        """Run it with these variables, named without the prefix: status, stdout, stderr."""
        for name, value in environ.items():
            self.monkeypatch.setenv(f"SYSTEMEVENT_{name}", value)
        status = main(shlex.split(arguments))
        return status, *self.capsys.readouterr()

    def refuses(self, arguments: str, environ: Mapping[str, str], text: str) -> None:
        """The status is 1, and all there is to read is one line, which begins so."""
        assert self(arguments, environ) == (1, "", "")
        (line,) = self.caplog.messages
        assert line.startswith(text)
        assert "\n" not in line
        assert PASSWORD not in line


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> Iterator[Command]:
    """The command line, in an empty folder."""

    async def serve(*_: object) -> None:
        raise AssertionError("it serves")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.serving.serve", serve)
    monkeypatch.setattr("service.logs.set_up", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield Command(monkeypatch, capsys, caplog)
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
        ("serve", {"AUTH_SECRET": SECRET}, f"{DEMO} auth.secret as"),
        ("serve", {"AUTH_PREVIOUS_SECRET": SECRET}, f"{DEMO} auth.previous_secret as"),
        ("serve", {"AUTH_CLIENTS": "x"}, f"{DEMO} auth.clients as"),
        ("serve", {"AUTH_SECRET_FILE": "secret"}, f"{DEMO} auth.secret_file as"),
        ("serve", {"AUTH_PUBLIC_KEY_FILE": "key.pem"}, f"{DEMO} auth.public_key_file as"),
        ("serve", {"AUTH_JWKS_URL": "https://x"}, f"{DEMO} auth.jwks_url as"),
        ("serve", {"AUTH_ISSUER": "https://x"}, f"{DEMO} auth.issuer as"),
        ("serve", {"AUTH_AUDIENCE": "x"}, f"{DEMO} auth.audience as"),
        ("serve", {"SERVER_HOST": "::"}, f"{DEMO} server.host as"),
        ("serve", {"DATABASE_READ_URL": "postgresql://h/x"}, f"{DEMO} database.read_url as"),
        (
            "serve",
            GOOD | {"DATABASE_READ_URL": f"postgresql://u:{PASSWORD}@h/x?port=x"},
            "database.read_url: port: not a",
        ),
        ("token ada", {"DATABASE_DATA_DIR": "/dev/null/x"}, "database.data_dir: /dev/null/x: Not"),
        ("token ada", {"AUTH_ALGORITHMS": "RS256", "AUTH_JWKS_URL": "https://x"}, "auth.algorit"),
        ("migrate", {"AUTH_SECRET": SECRET}, "database.url: missing; set SYSTEMEVENT_"),
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


@pytest.mark.parametrize("sections", [["SERVER"], ["ADMIN"], ["SERVER", "ADMIN"]])
def test_a_port_is_taken(sections: list[str], command: Command, tmp_path: Path) -> None:
    """The keys of all ports that are taken are named, before anything else is started."""
    ports = {"SERVER_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
    told = []
    with contextlib.ExitStack() as stack:
        for section in sections:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            ports[f"{section}_PORT"] = port
            told.append(
                f"{section.lower()}.port: cannot listen on 127.0.0.1:{port}: "
                f"Address already in use; set SYSTEMEVENT_{section}_PORT to another"
            )
        command.refuses("serve", ports, "; ".join(told))
    assert list(tmp_path.iterdir()) == []


def test_one_port_for_both(command: Command, tmp_path: Path) -> None:
    """The two ports must differ, which is told before anything else is started."""
    port = str(free_port())
    text = f"admin.port: cannot listen on 127.0.0.1:{port}: "
    command.refuses("serve", {"SERVER_PORT": port, "ADMIN_PORT": port}, text)
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
        "postgresql://user@127.0.0.1:1/name?sslmode=verify-full",
        "postgresql://user@127.0.0.1:1/name?sslcert=/dev/null",
        "postgresql://user@127.0.0.1:1/name?service=nothing",
        "postgresql://user@127.0.0.1:1/name?require_auth=password",
    ],
)
async def test_a_url_that_is_none(url: str, tmp_path: Path) -> None:
    """A URL that can never connect is not waited for; the key is named, and no part of it told."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": url}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        await says_in_one_line(process, "database.url: ")


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (f"{LOCKED}:{PASSWORD}", "events"),
        (ROLE, "nothing"),
        ("who", "events"),
        (UNTRUSTED, "events"),
        (ROLE, "events?sslmode=require"),
    ],
    ids=["password", "database", "user", "grant", "TLS"],
)
async def test_what_waiting_does_not_mend(
    user: str, name: str, own: Cluster, tmp_path: Path
) -> None:
    """A wrong password, an unknown database or user, a missing grant, no TLS: the end of serve."""
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
    with new_database(cluster, name) as url:
        psql(url, missing)
        environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": cluster.url(name, ROLE)}
        async with run("serve", "--workers", workers, cwd=tmp_path, environ=environ) as process:
            assert await process.ended() in ((1,) if workers == "1" else (1, 3))
    assert "run: systemevent-read migrate" in "".join(process.errors)


# Migrating, signing


def test_migrating_twice(command: Command, cluster: Cluster) -> None:
    """The first run applies all migrations and names them; the second has nothing to do."""
    with new_database(cluster, "migrated_twice", "") as url:
        environ = {"DATABASE_URL": url, "AUTH_SECRET": SECRET}
        names = "0001_platform, 0002_system_event_read, 0003_views, views"
        up_to_date = "applied: nothing, the schema is up to date\n"
        assert command("migrate", environ) == (0, f"applied: {names}\n", "")
        assert command("migrate", environ) == (0, up_to_date, "")
        assert command("migrate --undo views", environ) == (0, "undone: views\n", "")
        assert command("migrate", environ) == (0, "applied: views\n", "")


@pytest.mark.parametrize("role", ["plain", 'O\'Hara \\ "co" $$'])
def test_granting(command: Command, cluster: Cluster, tmp_path: Path, role: str) -> None:
    """What `grants` prints, psql runs; whatever the role is called, and in whatever schema."""
    role = cluster.name(role)
    quoted = '"' + role.replace('"', '""') + '"'
    with new_role(cluster, quoted), new_database(cluster, "granting", "") as url:
        psql(
            url,
            "create schema ours",
            f"alter database {cluster.name('granting')} set search_path = ours",
        )
        migrate(url)
        status, printed, _ = command(f"grants {shlex.quote(role)}", {})
        assert status == 0
        (tmp_path / "grants.sql").write_text(printed)
        psql(url, f"@{tmp_path}/grants.sql")
        psql(url, f"set role {quoted}", "delete from system_event_read", "table users")


def test_the_example_of_views(command: Command) -> None:
    """It is printed as it stands in deploy/, where the tests try it."""
    example = (ROOT / "deploy/platform_views.sql").read_text()
    assert command("platform-views", {}) == (0, example, "")


async def test_migrating_interrupted(cluster: Cluster, tmp_path: Path) -> None:
    """A migration that is stopped before it is done does not report success."""
    with new_database(cluster, "held", "") as url:
        environ = {"DATABASE_URL": url, "AUTH_SECRET": SECRET}
        async with (
            connected(url) as holder,
            run("migrate", cwd=tmp_path, environ=environ) as process,
        ):
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute((ROOT / "sql/lock_migrations.sql").read_text())
            # not pg_stat_activity, which does not change within a transaction
            while not await holder.fetch("select from pg_locks where not granted"):
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
        await process.says("database lost")
        assert (await process.get("/live"), await process.get("/ready")) == (200, 503)
        answer: Answer | None = None
        while answer is None:
            with contextlib.suppress(aiohttp.ClientConnectorError):  # the port is not open yet
                answer = await process.post()
        status, body = answer
        assert (status, list(body)) == (503, ["error"])
        own.start()
        await process.says("database back")
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


async def test_workers_name_requests_apart(own: Cluster, tmp_path: Path) -> None:
    """No two requests share an id, whichever worker has them."""
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=on(own)) as process:
        workers = await process.ready(2)
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
def embedded(folder: Path) -> Iterator[Callable[[], bool]]:
    """Whether an embedded PostgreSQL runs. One that is left over is stopped."""
    note = folder / ".data/postgres/postmaster.pid"
    yield note.exists
    if note.exists():
        os.kill(int(note.read_text().split()[0]), signal.SIGQUIT)


async def test_trying_it_out(folder: Path, embedded: Callable[[], bool]) -> None:
    """Without a database URL: the lines it prints work, again and again, and after a restart.

    Ctrl-C stops all of it, and so does SIGTERM.
    """
    seen: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        async with run("serve", cwd=folder, environ={}) as process:
            hint = await process.prints("Ctrl-C stops all of it.")
            curl, look = re.findall(r"^((?:  .*\n)+)", hint, re.MULTILINE)[1:]
            for _ in range(2):
                assert '{"success":true}' in await shell(curl)
                seen.append(await shell(look))
            async with run("serve", cwd=folder, environ={}) as another:
                where = f"database.data_dir: {folder}/.data is in use by another process"
                await says_in_one_line(another, where)
            assert "analytical      | ada     |      199 | " in seen[0]
            assert len(set(seen)) == 1
            assert embedded()
            assert await process.ended(number) == 0
        assert not embedded()


# In README's first two blocks: what differs from one time to the next
MASKS = {
    r"\d{4}-\d\d-\d\d[T ][\d:.]+(Z|[+-]\d\d(:\d\d)?)": "TIME",
    r" ms=\S+ request=\S+": " ms=MS request=ID",
    r"127\.0\.0\.1:\d+": "HOST:PORT",
    r" +read_at|-{25,}": " WIDTH",  # a time that ends with zeros is shorter
}


def masked(text: str) -> list[str]:
    """Its lines, without what differs."""
    for pattern, name in MASKS.items():
        text = re.sub(pattern, name, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


async def test_a_terminal_shows_what_the_readme_prints(
    folder: Path, embedded: Callable[[], bool]
) -> None:
    """Line by line, with request lines as text; and what the printed commands answer."""
    master, terminal = pty.openpty()
    environ = {"SYSTEMEVENT_SERVER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "serve"),
        cwd=folder,
        env={**os.environ, "SYSTEMEVENT_ADMIN_PORT": str(free_port()), **environ},
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)  # so that its end is an error here
    shown = ""

    async def read(*texts: str) -> None:
        nonlocal shown
        while not all(text in shown for text in texts):
            shown += (await asyncio.to_thread(os.read, master, 4096)).decode().replace("\r", "")

    try:
        async with asyncio.timeout(PATIENCE):
            await read("info ready", "Ctrl-C stops all of it.\n")
            commands = re.findall(r"^((?:  .*\n)+)", shown, re.MULTILINE)[1:]
            answers = [await shell(f"exec 2>/dev/null\n{command}") for command in commands]
            await read("method=POST", "ids=2\n")
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
        os.close(master)
    first, second = re.findall(
        r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )[:2]
    make, installing, *lines = masked(first)
    assert make == "$ make run"
    told = installing.replace(".venv", "$(VENV)")
    assert f'@echo "{told}"' in (ROOT / "Makefile").read_text()
    there = masked(shown)
    there.sort(key=lambda line: line.endswith("service.admin.health"))  # it may come a bit sooner
    lines.sort(key=lambda line: line.endswith("service.admin.health"))
    for line, found in zip(lines, there, strict=True):
        assert re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), found)
    expected = [line for line in masked(second) if not line.startswith("$ ")]
    assert masked("".join(answers)) == expected


async def test_tokens_are_for_this_machine_alone(
    folder: Path, embedded: Callable[[], bool]
) -> None:
    """A page whose name leads to 127.0.0.1 is of another origin, and gets none."""
    async with run("serve", cwd=folder, environ={}) as process:
        await process.prints("Ctrl-C stops all of it.")
        for path in ("/", "/demo/users", "/demo/page.js", "/demo/client/bell.js"):
            for host, status in {
                f"localhost:{process.port}": 200,
                "127.0.0.1": 200,
                "[::1]:1": 200,
                f"rebound.example:{process.port}": 421,
                "localhost.rebound.example": 421,
                "[::1": 421,
            }.items():
                url = process.base + path
                async with aiohttp.request("GET", url, headers={"Host": host}) as answer:
                    assert (host, answer.status) == (host, status)
        assert await process.ended(signal.SIGTERM) == 0


async def test_trying_it_out_with_workers(folder: Path, embedded: Callable[[], bool]) -> None:
    """Workers share the embedded database, and it stops after the last of them."""
    async with run("serve", "--workers", "2", cwd=folder, environ={}) as process:
        hint = await process.prints("Ctrl-C stops all of it.")
        workers = await process.ready(2)
        curl = re.findall(r"^((?:  .*\n)+)", hint, re.MULTILINE)[1]
        os.kill(workers[0], signal.SIGTERM)
        await process.ready(1)
        assert '{"success":true}' in await shell(curl)
        assert await process.ended(signal.SIGTERM) == 0
    assert not embedded()


async def test_psql_without_a_database(tmp_path: Path) -> None:
    """`make psql` says that nothing runs."""
    program = (sys.executable, "-m", "service.demo.postgres")
    async with run(cwd=tmp_path, environ={}, program=program) as process:
        assert await process.ended() == 1
    (line,) = process.errors
    assert line.startswith("systemevent-read: database.data_dir: ")
