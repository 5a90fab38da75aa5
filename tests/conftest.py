"""A PostgreSQL for the session; a fresh, migrated database and a service on it for each test."""

import asyncio
import contextlib
import itertools
import secrets
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import jwt
import pytest
from aiohttp.pytest_plugin import AiohttpClient
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import AppRunner, TCPSite

from service import config
from service.admin import site
from service.app import create_runner
from service.database.migrations import migrate
from service.errors import ConfigError
from tests.support import citus, pooler
from tests.support.cluster import BIN, GIVEN, POOLED, Cluster, Given, free_port

# Where the tests are run by nohup, or in the background of a script, it is ignored, and so it would
# be by each service that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent  # of the repository
SECRET = "a secret of thirty-two bytes or more"
# May do what deploy/grants.sql grants, and nothing else
ROLE = f"bell_{secrets.token_hex(4)}" if GIVEN else "bell"
NO_SESSION = "needs a session, and the pooler gives transactions"


def token(user_id: str = "alice", secret: str = SECRET, **claims: Any) -> str:
    """A token as the platform makes them; `claims` are added, or removed where None."""
    expires = time.time() + 86_400  # some are made before the first test, and used in the last
    wanted = {"userId": user_id, "email": f"{user_id}@acme.example", "exp": expires}
    payload = {key: value for key, value in {**wanted, **claims}.items() if value is not None}
    return jwt.encode(payload, secret, "HS256")


def bearer(user_id: str = "alice", **claims: Any) -> dict[str, str]:
    """The header that carries such a token."""
    return {"Authorization": f"Bearer {token(user_id, **claims)}"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The PostgreSQL that most tests share; none may stop it."""
    if GIVEN:
        with given() as server:
            yield server
        return
    cluster = Cluster()
    cluster.start()
    psql(cluster.url(), f"create role {ROLE} login", "create database template_migrated")
    prepare(cluster.url("template_migrated"))
    yield cluster
    cluster.remove()


@contextlib.contextmanager
def given() -> Iterator[Given]:
    """The server that `make test` was given, with a role and a template of our own."""
    server = Given(GIVEN)
    with new_role(server, ROLE):
        if citus.WORKERS:
            yield server
            return
        with new_database(server, "template_migrated", "") as url:
            prepare(url)
            yield server


@contextlib.contextmanager
def new_database(
    cluster: Cluster, name: str, template: str = "template_migrated", options: str = ""
) -> Iterator[str]:
    """A database while the context lasts; its address as its owner."""
    if citus.WORKERS:
        with _distributed(cluster, name, migrated=bool(template)) as url:
            yield url
        return
    real = cluster.name(name)
    if template:
        template = cluster.name(template)
        options = f"template {template}"
        if GIVEN:  # nobody may be there, not even a pooler
            cut(cluster, template)
    psql(cluster.url(), f"create database {real} {options}")
    try:
        yield cluster.url(name)
    finally:
        psql(cluster.url(), f"drop database {real} with (force)")


@contextlib.contextmanager
def _distributed(cluster: Cluster, name: str, *, migrated: bool) -> Iterator[str]:
    """The same, on a Citus."""
    citus.make(cluster, name)
    try:
        if migrated:
            migrate(cluster.url(name))
            psql(cluster.url(name), f"@{ROOT}/deploy/citus.sql", role=ROLE)
            load(cluster.url(name))
        yield cluster.url(name)
    finally:
        citus.drop(cluster, name)


def cut(cluster: Cluster, database: str) -> None:
    """End all sessions of a database: a pooler keeps its own, with the settings that they had."""
    there = f"from pg_stat_activity where datname = '{database}' and pid <> pg_backend_pid()"
    psql(cluster.url(), f"select pg_terminate_backend(pid) {there}")


@contextlib.contextmanager
def new_role(cluster: Cluster, name: str) -> Iterator[None]:
    """A role that may log in, while the context lasts; behind a pooler, as the README has it."""
    password = f"password '{cluster.password}'" if isinstance(cluster, Given) else ""
    settings = pooler.settings() if POOLED else ()
    more = (f"alter role {name} set {setting}" for setting in settings)
    psql(cluster.url(), f"create role {name} login {password}", *more)
    try:
        yield
    finally:
        psql(cluster.url(), f"drop role {name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a given server, leave out what has one of its own."""
    for item in items if GIVEN else ():
        names = getattr(item, "fixturenames", ())
        if "cluster" not in names and "unit" not in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="has a server of its own"))
        elif POOLED and item.get_closest_marker("session"):
            item.add_marker(pytest.mark.skip(reason=NO_SESSION))
        elif citus.WORKERS and (mark := item.get_closest_marker("single")):
            item.add_marker(pytest.mark.skip(reason=f"a distributed server has no {mark.args[0]}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left out on a given server."""
    skipped = terminalreporter.stats.get("skipped", ()) if GIVEN else ()
    names = Counter(
        f"{report.nodeid.partition('[')[0]}: {report.longrepr[2]}" for report in skipped
    )
    for name, times in sorted(names.items()):
        terminalreporter.write_line(f"{name} ({times})")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a server's data, for tests that run as root.

    Not below pytest's own: another session of pytest closes that to all users but root.
    """
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(name)


@contextlib.contextmanager
def serving_postgres(*commands: str, name: str = "postgres", **settings: str) -> Iterator[Cluster]:
    """A PostgreSQL of one's own that the service can use: its role; its schema in database `name`.

    `commands` run there in the end.
    """
    cluster = Cluster(BIN, **settings)
    try:
        cluster.start()
        psql(cluster.url(), f"create role {ROLE} login")
        if name != "postgres":
            psql(cluster.url(), f"create database {name}")
        prepare(cluster.url(name))
        if commands:
            psql(cluster.url(name), *commands)
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def own(own_cluster: Cluster) -> Iterator[Cluster]:
    """The PostgreSQL that a module has for itself, running and awake again after the test."""
    yield own_cluster
    if not own_cluster.running():
        own_cluster.start()
    own_cluster.thaw()


def psql(url: str, *commands: str, **variables: str) -> str:
    """Run commands, or files given as @path, with the psql that people use; its output."""
    arguments = [f"--set={name}={value}" for name, value in variables.items()]
    for command in commands:
        arguments += ["-f", command[1:]] if command.startswith("@") else ["-c", command]
    done = subprocess.run(
        [BIN / "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", url, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepare(url: str) -> None:
    """Migrate a database, grant the role what it needs, and load tests/support/data.sql."""
    migrate(url)
    load(url)


def load(url: str) -> None:
    """Grant the role what it needs, and load the data."""
    psql(url, f"@{ROOT}/deploy/grants.sql", f"@{ROOT}/tests/support/data.sql", role=ROLE)


@dataclass
class Sandbox:
    """A database of a test's own, with the data of tests/support/data.sql."""

    url: str  # as the service's role
    owner_url: str
    owner: "asyncpg.Connection[asyncpg.Record]"

    async def read_rows(self) -> set[tuple[str, str, int]]:
        """What is marked: (organization, user, event)."""
        rows = await self.owner.fetch(
            "select organization_id, user_id, event_id from system_event_read"
        )
        return {tuple(row) for row in rows}


_numbers = itertools.count()


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[Sandbox]:
    """A copy of the migrated database, dropped after the test."""
    name = f"test_{next(_numbers)}"
    with new_database(cluster, name) as url:
        owner = await connect(url)
        yield Sandbox(cluster.url(name, ROLE), url, owner)
        await owner.close()


async def connect(url: str, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """A session with the database; one that is lent for a transaction, where there is a pooler."""
    if POOLED and options:
        pytest.skip(NO_SESSION)
    return await asyncpg.connect(url, statement_cache_size=0 if POOLED else 100, **options)


def through_a_pooler() -> dict[str, str]:
    """What a service has to be told where a pooler is in front of the server."""
    return {"DATABASE_STATEMENT_CACHE_SIZE": "0"} if POOLED else {}


class Service(TestServer):
    """The service as `serve` runs it, in this process, on ports of its own."""

    def __init__(self, url: str, environ: dict[str, str]) -> None:
        """Configure from environment variables, as an operator would; without the prefix."""
        defaults = {
            "AUTH_SECRET": SECRET,
            "DATABASE_URL": url,
            "ADMIN_PORT": str(free_port()),
            "LOGGING_LEVEL": "warning",
            **through_a_pooler(),
        }
        if any(
            key in environ for key in ("AUTH_JWKS_URL", "AUTH_PUBLIC_KEY_FILE", "AUTH_SECRET_FILE")
        ):
            del defaults["AUTH_SECRET"]
        self.given_up: list[ConfigError] = []
        self.config = config.load(
            str(ROOT / "config.toml"),
            {f"SYSTEMEVENT_{key}": value for key, value in {**defaults, **environ}.items()},
        )
        self.admin = f"http://127.0.0.1:{self.config.admin.port}"
        self._runner = create_runner(self.config, self.given_up.append)
        super().__init__(self._runner.app)

    async def start_server(self, loop: Any = None, **options: Any) -> None:
        """Serve on both ports."""
        await super().start_server(loop, **options)
        admin = self._runner.app[site.RUNNER]
        await TCPSite(admin, self.config.admin.host, self.config.admin.port).start()

    async def _make_runner(self, **_: Any) -> AppRunner:
        return self._runner


Start = Callable[..., Awaitable[TestClient[Any, Any]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, database: Sandbox) -> Start:
    """Start a service on the test's database; keywords are variables: CORS_ORIGINS="..."."""

    async def start(url: str = database.url, *, ready: bool = True, **environ: str) -> Any:
        service = Service(url, environ)
        client = await aiohttp_client(service)
        while ready:
            async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
                if answer.status == 200:
                    break
        while ready and not service.app[site.HEALTH].is_ready:  # the start has tried it all as well
            await asyncio.sleep(0)
        return client

    return start


@pytest.fixture
async def client(start: Start) -> TestClient[Any, Any]:
    """A client of a service with the default configuration."""
    return await start()
