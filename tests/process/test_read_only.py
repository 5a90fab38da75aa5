"""The service where nothing can be written, and where its user has no home that it may enter."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SECRET, Sandbox
from tests.support.process import run

# In a mount namespace of its own: Python can be reached where its folder is root's alone; all that
# is mounted becomes read-only; what WRITABLE names becomes an empty folder that anybody may write
# to; and the command runs as a user whom nobody knows.
READ_ONLY = f"""
python={sys.base_prefix}
if [ "$CLOSED" ]; then
  mount --bind "$python" /mnt && mount -t tmpfs -o mode=755 none "$CLOSED"
  mkdir -p "$python" && mount --move /mnt "$python"
fi
for mounted in $(cut -d ' ' -f 5 /proc/self/mountinfo | sort -r); do
  mount -o remount,bind,ro "$mounted" 2>/dev/null
done
for writable in $WRITABLE; do mount -t tmpfs -o mode=1777 none "$writable"; done
! touch / /tmp /var/tmp /dev/shm 2>/dev/null || test "$WRITABLE" || exit 99
exec setpriv --reuid 10001 --regid 10001 --clear-groups "$@"
"""
SHARED = "/dev/shm"  # noqa: S108 - a folder of the namespace
NAMESPACE = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")


def closed() -> str:
    """The first folder above Python's that only its owner may enter, if any."""
    above = reversed(Path(sys.base_prefix).parents)
    return next((str(folder) for folder in above if not folder.stat().st_mode & 0o001), "")


def possible() -> bool:
    """Whether this user may make such a namespace, and such a user may run this repository."""
    again = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [
        "env",
        f"CLOSED={closed()}",
        *NAMESPACE,
        sys.executable,
        "-c",
        again,
        "-c",
        "import service.app",
    ]
    try:
        return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not possible(),
    reason="needs root and a Linux that lets it mount",
)


def locked_in(writable: str = "") -> tuple[str, ...]:
    """The service's program in such a namespace."""
    variables = (f"WRITABLE={writable}", f"CLOSED={closed()}")
    unmeasured = ("-u", "COVERAGE_PROCESS_CONFIG")  # `make coverage` could not write there, either
    return ("env", *unmeasured, *variables, *NAMESPACE, sys.executable, "-m", "service")


DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


@pytest.fixture
def image(folder: Path) -> Path:
    """A folder with what the Dockerfile copies."""
    folder.chmod(0o755)
    for path in re.findall(r"(?m)^COPY ([^-]\S*) /opt", DOCKERFILE):
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        (folder / path).parent.mkdir(exist_ok=True)
        copy(ROOT / path, folder / path)
    return folder


async def test_the_image_holds_all_that_it_needs(database: Sandbox, image: Path) -> None:
    """What the Dockerfile copies, with its variables and its health check, on a read-only root."""
    variables = dict(re.findall(r'(\w+)="?([^"\s]*)', re.findall("(?m)^ENV (.*)$", DOCKERFILE)[0]))
    environ = {"DATABASE_URL": database.url, "AUTH_SECRET": SECRET}
    inside = ("env", *(f"{name}={value}" for name, value in variables.items()), *locked_in())
    here = {"cwd": image, "python_path": image, "environ": environ, "program": inside}
    async with run("serve", **here) as process:  # type: ignore[arg-type] # as run() has them
        await process.says('"ready"', instead_of='"error"')
        assert await process.post() == (200, {"success": True})
        (check,) = re.findall(r'(?ms)^HEALTHCHECK .* CMD \["\S+", "-c", \\\n(.*?)\]$', DOCKERFILE)
        port = process.admin.rpartition(":")[2]
        command = (sys.executable, "-c", json.loads(check))
        for number, status in ((port, 0), ("1", 1)):
            asked = await asyncio.create_subprocess_exec(
                *command, env={"SYSTEMEVENT_ADMIN_PORT": number}, stderr=asyncio.subprocess.DEVNULL
            )
            assert await asked.wait() == status
        assert await process.ended(signal.SIGTERM) == 0


async def test_two_workers_need_no_more_than_shared_memory(database: Sandbox) -> None:
    """As in a container with a read-only root: nothing else can be written to."""
    environ = {"DATABASE_URL": database.url, "AUTH_SECRET": SECRET}
    serve = ("serve", "--workers", "2")
    async with run(*serve, cwd=ROOT, environ=environ, program=locked_in(SHARED)) as process:
        for _ in range(2):
            await process.says('"ready"', instead_of='"error"')
        assert await process.post() == (200, {"success": True})


async def test_two_workers_where_nothing_can_be_written_say_what_they_need(
    database: Sandbox,
) -> None:
    """One line; and a single worker needs nothing."""
    environ = {"DATABASE_URL": database.url, "AUTH_SECRET": SECRET}
    serve = ("serve", "--workers", "2")
    async with run(*serve, cwd=ROOT, environ=environ, program=locked_in()) as process:
        assert await process.ended() == 1
        (line,) = process.errors
        assert '"message":"server.workers: ' in line
        assert SHARED in line
    async with run("serve", cwd=ROOT, environ=environ, program=locked_in()) as process:
        await process.says('"ready"', instead_of='"error"')


AGAIN = "delete from system_event_read_migration where migration_id = 'views'"


PRUNE = pytest.param("prune", marks=pytest.mark.session)


@pytest.mark.parametrize("command", ["serve", "migrate", PRUNE])
async def test_a_user_may_have_no_name_and_no_home(
    database: Sandbox, tmp_path: Path, command: str
) -> None:
    """As in a container: a number, and a home that it may not enter and that counts as none."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    await database.owner.execute(AGAIN if command == "migrate" else "select")
    url = database.owner_url if command == "migrate" else database.url
    environ = {"DATABASE_URL": url, "AUTH_SECRET": SECRET}
    program = ("env", "-u", "USER", "-u", "LOGNAME", f"HOME={home}", *locked_in())
    async with run(command, cwd=ROOT, environ=environ, program=program) as process:
        if command == "serve":
            await process.says('"ready"', instead_of='"error"')
        else:
            assert await process.ended() == 0
