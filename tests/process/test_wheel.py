"""The wheel: installed alone, in an empty folder, it migrates and serves."""

import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import pytest

from service.__main__ import main
from tests.conftest import ROOT, SECRET, psql
from tests.support.cluster import BIN, Cluster
from tests.support.process import run

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
    client = {f"service/client/{file.name}" for file in (ROOT / "client").glob("*.js")}
    assert client == {name for name in names if name.startswith("service/client/")}
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


@pytest.fixture
def platform() -> Iterator[Cluster]:
    """A server with an administrator, and a database whose owner may make no roles."""
    cluster = Cluster()
    access = cluster.data / "pg_hba.conf"
    access.write_text("host all systemevent_read all scram-sha-256\n" + access.read_text())
    cluster.start()
    roles = ("create role admin superuser login", "create role owner login")
    psql(cluster.url(), *roles, "create database platform owner owner")
    yield cluster
    cluster.remove()


def steps(installed: Path, cluster: Cluster) -> list[str]:
    """The commands that README prints for running beside a platform, after the installation."""
    text = (ROOT / "README.md").read_text().partition("## Running it beside a platform\n")[2]
    block = re.findall(r"```console\n(.*?)```", text, re.DOTALL)[0]
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    own = [line for line in commands if not line.startswith(("python3 -m venv", "pip install"))]
    assert len(commands) - len(own) == 3
    path = f"export PATH={installed}/bin:{BIN}:$PATH"
    where = {"@db/": f"@127.0.0.1:{cluster.port}/", "='...'": f"='{SECRET}'"}
    for old, new in where.items():
        own = [line.replace(old, new) for line in own]
    return [path, *own]


async def test_the_steps_of_the_readme(installed: Path, platform: Cluster, tmp_path: Path) -> None:
    """In an empty folder, as printed: migrate, grants, serve; and an event is read."""
    *before, last = steps(installed, platform)
    script = "\n".join([*before, f"exec {last}"])
    async with run(
        cwd=tmp_path, python_path=installed, program=("sh", "-ec", script), environ={}
    ) as process:
        await process.says('"ready"')
        psql(platform.url("platform", "owner"), f"@{ROOT}/tests/support/data.sql")
        while await process.get("/ready") != 200:
            pass
        assert await process.post() == (200, {"success": True})
        assert await process.ended(signal.SIGTERM) == 0
    marked = psql(platform.url("platform"), "select user_id, event_id from system_event_read")
    assert marked == "alice|1\n"
    assert not any(map(Path.exists, (tmp_path / "service", tmp_path / ".data")))


async def test_it_shows_the_page(installed: Path, folder: Path) -> None:
    """Without a database it is the demo: the page, and each file that it names, and these name."""
    async with run("serve", cwd=folder, python_path=installed, environ={}) as process:
        await process.prints("Ctrl-C stops all of it.")
        found, left = set(), {process.base + "/"}
        while left:
            url = left.pop()
            async with aiohttp.request("GET", url) as answer:
                assert (url, answer.status) == (url, 200)
                text = await answer.text()
            found.add(url)
            names = re.findall(r'(?:href=|src=|from )"([./][^"]+)"', text)
            left |= {urljoin(url, name) for name in names} - found
        assert {
            process.base + f"/demo/client/{name}.js" for name in ("api", "bell", "task")
        } < found
        assert await process.ended(signal.SIGTERM) == 0


SERVE = "role systemevent_read: permission denied for table users; see deploy/grants.sql, or run: "
GRANTS = 'ERROR:  role "systemevent_read" does not exist'
MIGRATE = "role guest: permission denied for schema public; migrate as the owner of the schema"


@pytest.mark.parametrize(
    ("step", "instead", "told"),
    [
        ("systemevent-read grants.*", "", f"{SERVE}systemevent-read grants systemevent_read"),
        ("psql 'postgresql://admin.*", "", GRANTS),
        ("owner@", "guest@", MIGRATE),
    ],
)
async def test_a_step_gone_wrong(
    installed: Path, platform: Cluster, tmp_path: Path, step: str, instead: str, told: str
) -> None:
    """What is told has the name of the role, and what to do or which file to look at."""
    psql(platform.url(), "create role guest login")
    script = re.sub(step, instead, "\n".join(steps(installed, platform)))
    async with run(
        cwd=tmp_path, python_path=installed, program=("sh", "-ec", script), environ={}
    ) as process:
        assert await process.ended()
    assert told in "".join(process.errors)


def test_its_version_is_what_the_command_says(
    wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wheel and `--version` take it from one place."""
    with pytest.raises(SystemExit):
        main(["--version"])
    version = capsys.readouterr().out.removeprefix("systemevent-read ").strip()
    assert wheel.name.startswith(f"systemevent_read-{version}-")
