"""Read state that moves: to another schema, to another database, whole or by itself."""

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from service.database.migrations import migrate
from tests.conftest import ROLE, ROOT, Service, bearer, cut, new_database, psql
from tests.support.cluster import BIN, Cluster

ROWS = "select organization_id, user_id, event_id, read_at from system_event_read order by 1, 2, 3"
_numbers = itertools.count()


@pytest.fixture
def name(cluster: Cluster) -> Iterator[str]:
    """A database in which alice has read an event."""
    name = f"moving_{next(_numbers)}"
    with new_database(cluster, name) as url:
        psql(url, "insert into system_event_read values ('acme', 'alice', 3)")
        yield name


@pytest.fixture
def target(cluster: Cluster, name: str) -> Iterator[str]:
    """Another database, empty."""
    with new_database(cluster, f"{name}_target", "", "template template0"):
        yield f"{name}_target"


async def serves(cluster: Cluster, name: str) -> None:
    """The service on that database is ready, knows what is read, and marks."""
    service = Service(cluster.url(name, ROLE), {})
    async with TestClient(service) as client:
        async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
            assert (answer.status, await answer.text()) == (200, '{"ready": true}')
        async with client.post("/systemevent", json={}, headers=bearer()) as answer:
            events = (await answer.json())["events"]
            assert [event["id"] for event in events if not event["showUnread"]] == [3]
        body = {"ids": [3, 4]}
        async with client.post("/systemevent/read", json=body, headers=bearer()) as answer:
            assert answer.status == 200
    assert [row.split("|")[2] for row in psql(cluster.url(name), ROWS).split("\n")[:-1]] == [
        "3",
        "4",
    ]


@pytest.mark.parametrize("path", ["public, reads", "reads, public"])
async def test_to_another_schema(cluster: Cluster, name: str, path: str) -> None:
    """The steps of the README, wherever the new schema stands in the search_path."""
    psql(
        cluster.url(name),
        "create schema reads",
        "alter table system_event_read set schema reads",
        f"grant usage on schema reads to {ROLE}",
        f"alter database {cluster.name(name)} set search_path = {path}",
    )
    cut(cluster, cluster.name(name))
    assert migrate(cluster.url(name)) == []
    await serves(cluster, name)


def run(program: str, *arguments: str | Path) -> None:
    """Run one of PostgreSQL's programs."""
    subprocess.run([BIN / program, *arguments], check=True)


# pg_dump leaves a pooler's session with a search_path of its own.
@pytest.mark.session
async def test_a_dump_of_the_database(
    cluster: Cluster, name: str, target: str, tmp_path: Path
) -> None:
    """Restored, it serves, and nothing is left to migrate."""
    dump = tmp_path / "dump"
    run("pg_dump", "-Fc", "-f", dump, cluster.url(name))
    run("pg_restore", "-e", "-d", cluster.url(target), dump)
    assert psql(cluster.url(target), ROWS) == psql(cluster.url(name), ROWS)
    assert migrate(cluster.url(target)) == []
    await serves(cluster, target)


@pytest.mark.session
async def test_a_dump_of_our_table(
    cluster: Cluster, name: str, target: str, tmp_path: Path
) -> None:
    """Its rows, restored into a platform that was migrated and granted before."""
    url = cluster.url(target)
    migrate(url)
    psql(url, f"@{ROOT}/deploy/grants.sql", f"@{ROOT}/tests/support/data.sql", role=ROLE)
    dump, table = tmp_path / "dump", "--table=system_event_read"
    run("pg_dump", "-Fc", table, "-f", dump, cluster.url(name))
    run("pg_restore", "-e", "--data-only", table, "-d", url, dump)
    assert psql(url, ROWS) == psql(cluster.url(name), ROWS)
    await serves(cluster, target)
