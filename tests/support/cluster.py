"""A PostgreSQL server for tests, that can be stopped, killed and frozen."""

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from service.demo.postgres import Postgres, binaries

# A server that is there, as in: make test DATABASE_URL=...
GIVEN = os.environ.get("TEST_DATABASE_URL", "")


def _look_at_given() -> tuple[Path, bool]:
    """The programs that fit its version, and whether a pooler is in front of it."""
    with psycopg.connect(GIVEN) as connection:
        programs = Path(f"/usr/lib/postgresql/{connection.info.server_version // 10_000}/bin")
        row = connection.execute("select pg_backend_pid()").fetchone()
        return programs, row != (connection.info.backend_pid,)


# Programs of a PostgreSQL, and whether a session is good for no more than a transaction.
BIN, POOLED = _look_at_given() if GIVEN else (binaries(), False)
if os.environ.get("TEST_POSTGRES"):  # as .ci/run asks for
    BIN = Path(os.environ["TEST_POSTGRES"])
elif not BIN.exists():
    BIN = binaries()
SETTINGS = {"fsync": "off", "max_connections": "200", "shared_buffers": "64MB"}


def free_port() -> int:
    """Find a TCP port that nobody listens on, and that no outgoing connection is given later."""
    while True:
        port = random.randrange(15_000, 32_768)  # where Linux begins with those
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Cluster(Postgres):
    """A server in a temporary folder, with a TCP port of its own."""

    def __init__(self, programs: Path = BIN, **settings: str) -> None:
        """Make the data folder with these programs; `settings` go to postgresql.conf."""
        self._folder = tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        super().__init__(self.folder / "data", programs)
        self.port = free_port()
        self.listen = "127.0.0.1"
        self.initialize("--no-sync", settings=SETTINGS | settings)

    def url(self, name: str = "postgres", user: str = "postgres", **query: str) -> str:
        """Address of a database, over TCP, whether the server runs or not."""
        more = "?" + "&".join(f"{key}={value}" for key, value in query.items()) if query else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{self.name(name)}{more}"

    def name(self, name: str) -> str:
        """What a database is called on this server."""
        return name

    def kill(self) -> None:
        """Kill -9 the server and wait until its children are gone too."""
        pids = self.pids()
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids:
            while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
                if pid != pids[0]:
                    _kill(pid)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.data / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop every process of the server in its tracks: connections stay, answers do not come."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # it ended as soon as the first was awake
                os.kill(pid, signal.SIGCONT)

    def pids(self) -> list[int]:
        """The postmaster, then its children."""
        master = self.pid()
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return [master, *map(int, children)]

    def remove(self) -> None:
        """Stop, and delete all of it."""
        self.stop("immediate")
        self._folder.cleanup()


class Given(Cluster):
    """A server that is somebody else's: what we make there has names of our own, and goes again.

    It can be used, but not stopped, killed or frozen.
    """

    def __init__(self, url: str) -> None:
        """Take it as it is."""
        self._url = urlsplit(url)
        self._mark = f"t{secrets.token_hex(4)}"
        self.password = secrets.token_hex(16)

    def url(self, name: str = "", user: str = "", **query: str) -> str:
        """Address of a database; of the one that was given, where it has no name."""
        parts, more = self._url, "&".join(f"{key}={value}" for key, value in query.items())
        if user:
            host = parts.netloc.rpartition("@")[2]
            parts = parts._replace(netloc=f"{user.partition(':')[0]}:{self.password}@{host}")
        if name:
            parts = parts._replace(path=f"/{self.name(name)}")
        return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, more)))))

    def name(self, name: str) -> str:
        """A name that nobody else has."""
        return f"{self._mark}_{name}"


@contextlib.contextmanager
def standby_of(server: Cluster) -> Iterator[Cluster]:
    """A standby that streams from a server, which waits for it before it acknowledges."""
    with replica_of(server) as standby:
        try:
            command = "alter system set synchronous_standby_names = '*'"
            for it in (command, "select pg_reload_conf()"):
                server.run("psql", "-X", "-q", "-c", it, server.url())
            yield standby
        finally:
            standby.stop("immediate")
            (server.data / "postgresql.auto.conf").write_text("")
            if server.running():
                server.thaw()
                server.run("pg_ctl", "-D", server.data, "reload")


@contextlib.contextmanager
def replica_of(server: Cluster, **settings: str) -> Iterator[Cluster]:
    """A standby that streams from a server, which does not wait for it."""
    standby = Cluster()
    try:
        for entry in standby.data.iterdir():  # the folder stays: it belongs to who runs the server
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        arguments = ("-d", server.url(), "-D", standby.data, "-R", "-c", "fast", "--no-sync")
        standby.run("pg_basebackup", *arguments)
        standby.configure(**settings)
        standby.start()
        yield standby
    finally:
        standby.remove()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
