"""A server that is there, as in `make test DATABASE_URL=...`: directly, and through a pooler."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.support.cluster import Cluster
from tests.support.pooler import PGBOUNCER, transactions

pytestmark = pytest.mark.faults

# Marks, lists, counts, refusals, and what callers share
CONTRACT = (
    "count",
    "group_commit",
    "isolation",
    "list",
    "mark_all",
    "mark_all_chunks",
    "one_caller",
    "pages",
    "read",
    "tokens",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """The server, which is not ours as far as the tests on it know."""
    server = Cluster()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def pooled(server: Cluster) -> Iterator[str]:
    """Its address through a PgBouncer in transaction mode."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    with transactions(server, 20) as port:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


def run(url: str, *files: str) -> str:
    """Run tests on a server, two files at a time; what pytest says of those that passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files],
        cwd=ROOT,
        env={**os.environ, "TEST_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_contract_holds_behind_a_pooler(pooled: str) -> None:
    """All of it: nothing is left out."""
    assert "skipped" not in run(pooled, *(f"tests/http/test_{name}.py" for name in CONTRACT))


def test_nothing_stays_behind(server: Cluster) -> None:
    """What is made on a server has names of its own there, and goes again."""
    assert "skipped" not in run(
        server.url(), "tests/http/test_isolation.py", "tests/http/test_read.py"
    )
    for kind in ("datname from pg_database where not datistemplate", "rolname from pg_authid"):
        found = server.run("psql", "-XAtc", f"select {kind}", server.url()).split()
        assert [name for name in found if not name.startswith("pg_")] == ["postgres"]


def test_what_needs_a_session_is_named(pooled: str) -> None:
    """Each with its reason."""
    said = run(pooled, "tests/database/test_connections.py")
    assert "passed" not in said
    name = "tests/database/test_connections.py::test_a_statement_ends_on_the_server"
    assert f"{name}: Skipped: needs a session" in said
