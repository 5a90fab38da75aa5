"""An older version of the service beside this one, as while it is being upgraded."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import ROLE, ROOT, SECRET, bearer, new_database, prepare, psql
from tests.support.cluster import Cluster
from tests.support.process import Process, run

OLD = "452865d"  # the last commit of version 1.0
SHIPPED = ("service", "sql", "migrations", "openapi.yaml", "config.toml")
SUCCESS = (200, {"success": True})
# The library for pages of other origins that it had and this one has not; none are tried here.
CORS = """
from unittest.mock import Mock
ResourceOptions = setup = Mock()
"""
READ = "select event_id from system_event_read where user_id = 'alice' order by 1"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what version 1.0 ships."""
    folder = tmp_path_factory.mktemp("old")
    git = subprocess.run(
        ["git", "archive", OLD, *SHIPPED], cwd=ROOT, capture_output=True, check=False
    )
    if git.returncode:
        pytest.skip("the history of the repository is not here")
    subprocess.run(["tar", "-x"], cwd=folder, input=git.stdout, check=True)
    (folder / "aiohttp_cors.py").write_text(CORS)
    return folder


@pytest.fixture
def name(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database."""
    name = f"versions_{abs(hash(request.node.name))}"
    with new_database(cluster, name, ""):
        yield name


async def migrated_by(folder: Path, url: str, tmp_path: Path) -> str:
    """Run the `migrate` of that version; what it prints."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": url}
    async with run(
        "migrate", cwd=tmp_path, python_path=folder, environ=environ, usual={}
    ) as process:
        text = await process.prints("applied")
        assert await process.ended() == 0
        return text


async def works(process: Process, event: int) -> None:
    """It is ready, marks, and lists with read state."""
    while await process.get("/ready") != 200:
        pass
    assert await process.post(b'{"id":%d}' % event) == SUCCESS
    async with aiohttp.request(
        "POST", f"{process.base}/systemevent", json={}, headers=bearer()
    ) as answer:
        events = (await answer.json())["events"]
    assert event in [each["id"] for each in events if not each["showUnread"]]


# Version 1.0 sends a pooler settings that it refuses.
@pytest.mark.session
@pytest.mark.parametrize("before", ["older", "nothing"])
async def test_both_versions_on_the_newer_schema(
    old: Path, cluster: Cluster, name: str, tmp_path: Path, before: str
) -> None:
    """Each sees what the other has marked, and the older finds nothing to migrate."""
    url = cluster.url(name)
    if before == "older":
        assert "0003_views" in await migrated_by(old, url, tmp_path)
    prepare(url)
    assert "nothing" in await migrated_by(old, url, tmp_path)
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": cluster.url(name, ROLE)}
    async with (
        run("serve", cwd=tmp_path, python_path=old, environ=environ, usual={}) as older,
        run("serve", cwd=tmp_path, environ=environ) as newer,
    ):
        await asyncio.gather(works(older, 3), works(newer, 4))
        await asyncio.gather(works(older, 4), works(newer, 3))
        assert psql(url, READ).split() == ["3", "4"]
        assert await older.ended(signal.SIGTERM) == 0
        assert await newer.post(b'{"id":6}') == SUCCESS
        assert await newer.ended(signal.SIGTERM) == 0


async def test_this_version_on_the_older_schema(
    old: Path, cluster: Cluster, name: str, tmp_path: Path
) -> None:
    """It starts before anybody has migrated: it needs no table that version 1.0 has not."""
    url = cluster.url(name)
    await migrated_by(old, url, tmp_path)
    psql(url, f"@{ROOT}/deploy/grants.sql", f"@{ROOT}/tests/support/data.sql", role=ROLE)
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": cluster.url(name, ROLE)}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        await works(process, 3)
        assert await process.ended(signal.SIGTERM) == 0
