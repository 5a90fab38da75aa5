"""A PostgreSQL for the session; a fresh, migrated database and a service on it for each test."""

import itertools
import subprocess
import time
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
from aiohttp.web import AppRunner

from service import config
from service.app import create_runner
from service.errors import ConfigError
from service.migrations import migrate
from tests.cluster import BIN, Cluster, free_port

HERE = Path(__file__).parent
SECRET = "a secret of thirty-two bytes or more"
ROLE = "bell"  # may do what deploy/grants.sql grants, and nothing else


def token(user_id: str = "alice", secret: str = SECRET, **claims: Any) -> str:  # noqa: ANN401
    """A token as the platform makes them; `claims` are added, or removed where None."""
    wanted = {"userId": user_id, "email": f"{user_id}@acme.example", "exp": time.time() + 600}
    payload = {key: value for key, value in {**wanted, **claims}.items() if value is not None}
    return jwt.encode(payload, secret, "HS256")


def bearer(user_id: str = "alice", **claims: Any) -> dict[str, str]:  # noqa: ANN401
    """The header that carries such a token."""
    return {"Authorization": f"Bearer {token(user_id, **claims)}"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The PostgreSQL that most tests share; none may stop it."""
    cluster = Cluster()
    cluster.start()
    psql(cluster.url(), f"create role {ROLE} login")
    psql(cluster.url(), "create database template_migrated")
    prepare(cluster.url("template_migrated"))
    yield cluster
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
    """Migrate a database, grant the role what it needs, and load tests/data.sql."""
    migrate(url)
    psql(url, f"@{HERE.parent}/deploy/grants.sql", f"@{HERE}/data.sql", role=ROLE)


@dataclass
class Database:
    """A database of a test's own, with the data of tests/data.sql."""

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
async def database(cluster: Cluster) -> AsyncIterator[Database]:
    """A copy of the migrated database, dropped after the test."""
    name = f"test_{next(_numbers)}"
    server = await asyncpg.connect(cluster.url())
    await server.execute(f"create database {name} template template_migrated")
    owner = await asyncpg.connect(cluster.url(name))
    yield Database(cluster.url(name, ROLE), cluster.url(name), owner)
    await owner.close()
    await server.execute(f"drop database {name} with (force)")
    await server.close()


class Service(TestServer):
    """The service as `serve` runs it, in this process, on ports of its own."""

    def __init__(self, url: str, environ: dict[str, str]) -> None:
        """Configure from environment variables, as an operator would; without the prefix."""
        defaults = {
            "AUTH_SECRET": SECRET,
            "DATABASE_URL": url,
            "ADMIN_PORT": str(free_port()),
            "LOGGING_LEVEL": "warning",
        }
        if any(
            key in environ for key in ("AUTH_JWKS_URL", "AUTH_PUBLIC_KEY_FILE", "AUTH_SECRET_FILE")
        ):
            del defaults["AUTH_SECRET"]
        self.given_up: list[ConfigError] = []
        self.config = config.load(
            str(HERE.parent / "config.toml"),
            {f"SYSTEMEVENT_{key}": value for key, value in {**defaults, **environ}.items()},
        )
        self.admin = f"http://127.0.0.1:{self.config.admin.port}"
        self._runner = create_runner(self.config, url, self.given_up.append)
        super().__init__(self._runner.app)

    async def _make_runner(self, **_: Any) -> AppRunner:  # noqa: ANN401
        return self._runner


Start = Callable[..., Awaitable[TestClient[Any, Any]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, database: Database) -> Start:
    """Start a service on the test's database; keywords are variables: CORS_ORIGINS="..."."""

    async def start(url: str = database.url, *, ready: bool = True, **environ: str) -> Any:  # noqa: ANN401
        service = Service(url, environ)
        client = await aiohttp_client(service)
        while ready:
            async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
                if answer.status == 200:
                    break
        return client

    return start


@pytest.fixture
async def client(start: Start) -> TestClient[Any, Any]:
    """A client of a service with the default configuration."""
    return await start()
