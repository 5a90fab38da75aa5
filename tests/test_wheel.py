"""The wheel: installed alone, in an empty folder, it migrates and serves."""

import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.conftest import HERE, ROLE, SECRET, psql
from tests.process import run

ROOT = HERE.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*PIP, "wheel", *offline, "-w", folder, "."], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but what the wheel installs."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel],
        check=True,
    )
    return target


def test_it_holds_all_that_it_needs(wheel: Path) -> None:
    """Code, SQL, migrations, the contract, the demo and the licence; and no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("service", "service/demo", "sql", "migrations"):
        for file in (ROOT / folder).iterdir():
            if file.is_file():
                inside = file.relative_to(ROOT).as_posix()
                assert inside.removeprefix("service/") in {
                    n.removeprefix("service/") for n in names
                }
    assert "service/openapi.yaml" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"service", "systemevent_read"}


def test_it_names_what_it_requires(wheel: Path) -> None:
    """The embedded PostgreSQL is an extra, which production does not install."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    required = [
        line
        for line in archive.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    needed = [line for line in required if "extra ==" not in line]
    assert any("asyncpg" in line for line in needed)
    assert not any("pgserver" in line or "pytest" in line for line in needed)


async def test_it_works_in_an_empty_folder(
    installed: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """With a database URL and a secret, and nothing else: migrate, serve, and an event is read."""
    psql(cluster.url(), "create database wheel")
    program = (sys.executable, str(installed / "bin/systemevent-read"))
    owner = {"DATABASE_URL": cluster.url("wheel"), "AUTH_SECRET": SECRET}
    async with run(
        "migrate", cwd=tmp_path, python_path=installed, program=program, environ=owner
    ) as process:
        assert await process.ended() == 0
    grants = f"@{ROOT}/deploy/grants.sql"
    psql(cluster.url("wheel"), grants, f"@{HERE}/data.sql", role=ROLE)
    service = owner | {"DATABASE_URL": cluster.url("wheel", ROLE)}
    async with run("serve", cwd=tmp_path, python_path=installed, environ=service) as process:
        await process.says('"ready"')
        while await process.get("/ready") != 200:
            pass
        assert await process.post() == (200, {"success": True})
        assert await process.ended(signal.SIGTERM) == 0
    marked = psql(cluster.url("wheel"), "select user_id, event_id from system_event_read")
    assert marked == "alice|1\n"
    assert not any(map(Path.exists, (tmp_path / "service", tmp_path / ".data")))
