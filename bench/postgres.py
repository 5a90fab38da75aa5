"""The bench's own PostgreSQL: started in a temporary folder, filled, and thrown away."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from service.demo.postgres import Postgres, binaries

HERE = Path(__file__).parent
ROOT = HERE.parent
BIN = binaries()
USERS = 50  # in each organization; organizations.sql and its kin have the same number
CALLERS = (
    5000  # who send requests; fewer than auth.cache_size, so that all their tokens stay cached
)


@dataclass(frozen=True)
class Size:
    """A database: so many organizations with so many events each, and as many read rows."""

    organizations: int
    events: int

    @property
    def rows(self) -> int:
        """Events, and read rows."""
        return self.organizations * self.events

    @property
    def name(self) -> str:
        """Of the database."""
        return f"bench_{self.rows}"

    @property
    def members(self) -> int:
        """Users of each organization who send requests."""
        return min(USERS, CALLERS // self.organizations)


@dataclass(frozen=True)
class Databases:
    """The databases of the bench, on a server that runs."""

    server: Postgres

    def url(self, size: Size) -> str:
        """Where a database is."""
        return self.server.url(size.name)

    def run(self, size: Size, file: str, **variables: object) -> str:
        """Run one of bench/*.sql with psql, and return what it prints."""
        settings = [f"--set={name}={value}" for name, value in variables.items()]
        command = [str(BIN / "psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", *settings]
        command += ["-f", str(HERE / file), self.url(size)]
        return subprocess.check_output(command, cwd=ROOT, text=True)

    def create(self, size: Size) -> None:
        """Make a database, with no rows in it."""
        self.server.run("createdb", "--maintenance-db", self.server.url(), size.name)
        environ = os.environ | {
            "SYSTEMEVENT_DATABASE_URL": self.url(size),
            "SYSTEMEVENT_AUTH_SECRET": "only to satisfy the configuration",
        }
        subprocess.check_call(
            [sys.executable, "-m", "service", "migrate"],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.DEVNULL,
        )

    def load(self, size: Size) -> None:
        """Make a database and fill it."""
        self.create(size)
        self.run(size, "organizations.sql", organizations=size.organizations)
        with tqdm(total=2 * size.rows, desc=size.name, unit=" rows", unit_scale=True) as progress:
            for file in ("events.sql", "reads.sql"):
                for first in range(1, size.organizations + 1, 10):
                    last = min(first + 9, size.organizations)
                    self.run(size, file, first=first, last=last, events=size.events)
                    progress.update((last - first + 1) * size.events)
        self.settle(size)

    def settle(self, size: Size) -> None:
        """Vacuum, analyze, checkpoint."""
        self.run(size, "settle.sql")

    def forget(self, size: Size) -> None:
        """Put the read rows back to what was loaded."""
        self.run(size, "forget.sql")
        self.run(size, "reads.sql", first=1, last=size.organizations, events=size.events)
        self.settle(size)

    def callers(self, size: Size) -> list[str]:
        """The users who send requests."""
        numbers = {"organizations": size.organizations, "members": size.members}
        return self.run(size, "callers.sql", **numbers).split()

    def plan(self, size: Size, statement: str, **variables: object) -> tuple[float, int]:
        """Milliseconds that a statement of sql/ took, and the rows that its plan threw away."""
        text = self.run(size, "plan.sql", statement=statement, **variables)
        (plan,) = json.loads(text)
        return plan["Execution Time"], _discarded(plan["Plan"])

    def cpu(self) -> float:
        """CPU seconds used so far."""
        return cpu_seconds(self.server.pid())


def _discarded(node: dict[str, Any]) -> int:
    own = sum(count for name, count in node.items() if name.startswith("Rows Removed by "))
    below = sum(_discarded(child) for child in node.get("Plans", ()))
    return int(own * node["Actual Loops"]) + below


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, its living children, and those it has seen end."""
    root = psutil.Process(pid)
    times = root.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return float(total)


@contextlib.contextmanager
def start(folder: Path) -> Iterator[Databases]:
    """Run a server in a folder while the context lasts."""
    server = Postgres(folder / "data")
    server.initialize()
    with (server.data / "postgresql.conf").open("a") as file:
        file.write((HERE / "postgresql.conf").read_text())
    server.start()
    try:
        yield Databases(server)
    finally:
        server.stop("immediate")
