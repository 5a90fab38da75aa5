"""/live and /ready: what the operator's port says in each state."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from tests.cluster import Cluster
from tests.conftest import ROLE, Database, Service, Start, bearer, prepare, psql
from tests.process import PATIENCE

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
    cluster = Cluster()
    cluster.start()
    psql(cluster.url(), f"create role {ROLE} login", "create database events")
    prepare(cluster.url("events"))
    yield cluster
    cluster.remove()


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
    monkeypatch.setattr("service.health.PROBE_TIMEOUT", 0.1)
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
    client: Client, database: Database, privilege: str, relation: str
) -> None:
    """Without any one of the grants it needs the service is unready, until it has it."""
    await database.owner.execute(f"revoke {privilege} on {relation} from {ROLE}")
    assert await ask(client) == not_ready("database: InsufficientPrivilegeError")
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(f"grant {privilege} on {relation} to {ROLE}")
    assert await ask(client) == READY


async def test_a_relation_is_missing(client: Client, database: Database) -> None:
    """Without the platform's tables the service is unready, until they are there."""
    await database.owner.execute("alter table system_event_log rename to event_log")
    assert await ask(client) == not_ready("database: UndefinedTableError")
    await database.owner.execute("alter table event_log rename to system_event_log")
    assert await ask(client) == READY


async def test_a_migration_is_pending(client: Client, database: Database) -> None:
    """A schema that lost a migration is named, until it is applied."""
    rename = "update system_event_read_migration set migration_id = $2 where migration_id = $1"
    await database.owner.execute(rename, "0003_views", "0003_other")
    assert await ask(client) == not_ready("pending migrations: 0003_views")
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(rename, "0003_other", "0003_views")
    assert await ask(client) == READY


async def test_a_newer_schema_is_good(client: Client, database: Database) -> None:
    """Migrations of a later version do not stop this one, so that versions can take turns."""
    await database.owner.execute(
        "insert into system_event_read_migration (migration_hash, migration_id) "
        "values ('later', '9999_later')"
    )
    assert await ask(client) == READY


async def test_a_standby_is_not_ready(client: Client, database: Database) -> None:
    """A database that takes no writes makes the service unready, until it does."""
    name = database.url.rpartition("/")[2]
    await database.owner.execute(f"alter database {name} set default_transaction_read_only = on")
    await database.owner.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where usename = $1 and datname = $2",
        ROLE,
        name,
    )
    # The first answers may be about the connections that were cut.
    async with asyncio.timeout(PATIENCE):
        while await ask(client) != not_ready("database: ReadOnlySQLTransactionError"):
            pass
    assert await ask(client, "/live") == LIVE
    await database.owner.execute(f"alter database {name} reset default_transaction_read_only")
    assert await ask(client) == READY


async def test_shutting_down(client: Client, database: Database) -> None:
    """While the last requests are answered the service lives and is not ready."""
    service = client.server
    assert isinstance(service, Service)
    async with database.owner.transaction():
        await database.owner.execute("lock table system_event_read in exclusive mode")
        last = asyncio.create_task(
            client.post("/systemevent/read", json={"id": 1}, headers=bearer())
        )
        # not pg_stat_activity, which does not change within a transaction
        waiting = "select from pg_locks where not granted"
        while not await database.owner.fetch(waiting):
            assert not last.done()
        assert service.runner is not None
        stopping = asyncio.create_task(service.runner.cleanup())
        while (answer := await ask(client)) == READY:
            pass
        assert answer == not_ready("shutting down")
        assert await ask(client, "/live") == LIVE
    assert (await last).status == 200
    await stopping
