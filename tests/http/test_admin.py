"""/live and /ready: what the operator's port says in each state."""

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from service.database.migrations import VIEWS, migrate, undo
from service.errors import ConfigError
from tests.conftest import ROLE, Sandbox, Service, Start, bearer, serving_postgres
from tests.support.cluster import POOLED, Cluster
from tests.support.process import PATIENCE

Client = TestClient[Any, Any]
LIVE = (200, {"live": True})
READY = (200, {"ready": True})


async def ask(client: Client, path: str = "/ready") -> tuple[int, Any]:
    """Status and body that the operator's port answers."""
    service = client.server
    assert isinstance(service, Service)
    async with aiohttp.request("GET", service.admin + path) as answer:
        assert answer.content_type == "application/json"
        return answer.status, await answer.json()


def not_ready(reason: str) -> tuple[int, dict[str, str]]:
    """503, in the shape of every answer that is not 2xx."""
    return 503, {"error": reason}


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that tests here may stop and freeze."""
    with serving_postgres(name="events") as cluster:
        yield cluster


async def test_ready(client: Client) -> None:
    """With its database there and its schema current, the service is ready."""
    assert (await ask(client, "/live"), await ask(client)) == (LIVE, READY)


async def test_the_public_port_says_nothing(client: Client) -> None:
    """The operator's paths are not on the public port, nor the public ones on the operator's."""
    for path in ("/live", "/ready", "/metrics"):
        assert (await client.get(path)).status == 404
    service = client.server
    assert isinstance(service, Service)
    for path in ("/", "/systemevent/read", "/openapi.yaml"):
        async with aiohttp.request("POST", service.admin + path, headers=bearer()) as answer:
            assert answer.status == 404


async def test_a_body_is_never_inflated(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's port shares its loop with the public one."""
    inflated: list[object] = []
    monkeypatch.setattr("aiohttp.http_parser.ZLibDecompressor", inflated.append)
    service = client.server
    assert isinstance(service, Service)
    async with aiohttp.request(
        "GET",
        f"{service.admin}/live",
        data=gzip.compress(bytes(1_000_000)),
        headers={"Content-Encoding": "gzip"},
    ) as answer:
        assert answer.status == 200
    assert not inflated


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nExpect: x\r\nConnection: close\r\n\r\n", 417),
        (b"GET /live HTTP/1.1\r\nX-A: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_not_http_is_refused_as_on_the_public_port(
    client: Client, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    """In the one shape, without a version of anything, and without a traceback."""
    service = client.server
    assert isinstance(service, Service)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.config.admin.port)
    writer.write(sent)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status))
    assert b"\r\nServer: systemevent-read\r\n" in head
    assert list(json.loads(body)) == ["error"]
    assert not caplog.records


async def test_the_database_goes_and_comes_back(start: Start, own: Cluster) -> None:
    """While the database is down the service lives and is not ready; then it is again."""
    client = await start(own.url("events", ROLE), LIMITS_DEADLINE="1", LIMITS_BODY_DEADLINE="1")
    own.stop("immediate")
    assert await ask(client, "/live") == LIVE
    status, body = await ask(client)
    assert status == 503
    assert body["error"].startswith("database: ")
    answer = await client.post("/systemevent/read", json={"id": 1}, headers=bearer())
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    own.start()
    assert (await client.post("/systemevent/read", json={"id": 1}, headers=bearer())).status == 200
    assert await ask(client) == READY


async def test_the_database_is_frozen(
    start: Start, own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that takes questions and gives no answers is as good as down."""
    client = await start(own.url("events", ROLE))
    own.freeze()
    monkeypatch.setattr("service.admin.health.PROBE_TIMEOUT", 0.1)
    assert (await ask(client))[0] == 503
    assert await ask(client, "/live") == LIVE
    monkeypatch.undo()
    own.thaw()
    assert await ask(client) == READY


GRANTS = [
    ("select", "users"),
    ("select", "system_event_log"),
    ("select", "workspace_user"),
    ("select", "system_event_read"),
    ("insert", "system_event_read"),
    ("delete", "system_event_read"),
]


@pytest.mark.parametrize(("privilege", "relation"), GRANTS)
async def test_a_grant_is_missing(
    client: Client, database: Sandbox, privilege: str, relation: str
) -> None:
    """Without any one of the grants it needs the service is unready, until it has it."""
    await database.owner.execute(f"revoke {privilege} on {relation} from {ROLE}")
    assert await ask(client) == not_ready(
        f"role {ROLE}: permission denied for table {relation}; "
        f"see deploy/grants.sql, or run: systemevent-read grants {ROLE}"
    )
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(f"grant {privilege} on {relation} to {ROLE}")
    assert await ask(client) == READY


async def test_a_relation_is_missing(client: Client, database: Sandbox) -> None:
    """Without the platform's tables the service is unready, until they are there."""
    await database.owner.execute("alter table system_event_log rename to event_log")
    assert await ask(client) == not_ready(
        "system_event_log is missing: see deploy/platform_views.sql"
    )
    await database.owner.execute("alter table event_log rename to system_event_log")
    assert await ask(client) == READY


async def test_a_column_has_another_type(client: Client, database: Sandbox) -> None:
    """Of a relation that changed since, the same is told as by `migrate`."""
    undo(database.owner_url, VIEWS)
    await database.owner.execute("alter table workspace_user alter workspace_id type char(8)")
    fault = (
        "workspace_user.workspace_id is character(8), must be text: see deploy/platform_views.sql"
    )
    assert await ask(client) == not_ready(fault)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        migrate(database.owner_url)


async def test_a_migration_is_pending(client: Client, database: Sandbox) -> None:
    """A schema that lost a migration is named, until it is applied."""
    rename = "update system_event_read_migration set migration_id = $2 where migration_id = $1"
    await database.owner.execute(rename, "0003_views", "0003_other")
    assert await ask(client) == not_ready(
        "pending migrations: 0003_views; run: systemevent-read migrate"
    )
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(rename, "0003_other", "0003_views")
    assert await ask(client) == READY


async def test_a_newer_schema_is_good(client: Client, database: Sandbox) -> None:
    """Migrations of a later version do not stop this one, so that versions can take turns."""
    await database.owner.execute(
        "insert into system_event_read_migration (migration_hash, migration_id) "
        "values ('later', '9999_later')"
    )
    assert await ask(client) == READY


async def test_a_standby_is_not_ready(client: Client, database: Sandbox) -> None:
    """A database that takes no writes makes the service unready, until it does."""
    name = database.url.rpartition("/")[2]
    theirs = "from pg_stat_activity where usename = $1 and datname = $2"
    end = f"select pg_terminate_backend(pid) {theirs}"
    await database.owner.execute(f"alter database {name} set default_transaction_read_only = on")
    await database.owner.execute(end, ROLE, name)
    # The first answers may be about the connections that were cut.
    async with asyncio.timeout(PATIENCE):
        while await ask(client) != not_ready(
            "database: cannot execute SELECT in a read-only transaction"
        ):
            pass
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(f"alter database {name} reset default_transaction_read_only")
    if POOLED:  # it keeps sessions that were opened meanwhile
        await database.owner.execute(end, ROLE, name)
    async with asyncio.timeout(PATIENCE):
        while POOLED and await ask(client) != READY:
            pass
    assert await ask(client) == READY
