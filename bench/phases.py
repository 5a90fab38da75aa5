"""What is measured: each phase starts its contenders and returns their figures."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.attacks import ATTACKS, Attack, under
from bench.bell import Bell
from bench.load import BADGE, Key, Load, Sample, interleave, write_tokens
from bench.postgres import Databases, Size
from bench.servers import SECRET, Server, Starter

GROUP, EACH, FASTAPI, PGBENCH = "group commit", "statement per request", "FastAPI", "pgbench"
AIOHTTP = "aiohttp alone"
MARKS, BADGES = "marks, 64 connections", "badge, 8 connections"
CORES = os.cpu_count() or 1
QUIET = "nobody else"
VICTIM = 8  # connections of the victim, under each attack
IDLE = 0  # connections of a contender that has not had any yet
EACH_SETTINGS: dict[str, object] = {"commit_max_requests": 1, "commit_in_flight": 16}
TOKEN_CACHES = {"cached": 10_000, "never cached": 1000}  # 5,000 tokens go round

Results = dict[Key, Sample]
Cases = dict[Key, Callable[[], Sample]]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    sizes: Sequence[Size] = (Size(100, 100), Size(1000, 1000), Size(1000, 10_000))
    connections: Sequence[int] = (1, 8, 64, 512)
    clients: Sequence[int] = (1, 8, 16, 32, 64)
    ids: Sequence[int] = (1, 10, 100, 1000, 10_000)
    in_flight: Sequence[int] = (1, 2, 4)
    workers: Sequence[int] = (1, 2, 4, 8)
    seconds: int = 5
    rounds: int = 3
    bell: int = 1_000_000  # events of the large organization
    turn: float = 0.3  # seconds of each call there


QUICK = Scale(
    sizes=(Size(100, 100), Size(100, 1000)),
    connections=(1, 64, 512),
    clients=(16, 64),
    ids=(1, 100, 1000),
    seconds=3,
    rounds=1,
    bell=100_000,
    turn=0.1,
)


class Bench:
    """All phases, on one PostgreSQL."""

    def __init__(self, scale: Scale, databases: Databases, starter: Starter, folder: Path) -> None:
        """Sign the tokens."""
        self.scale = scale
        self._databases = databases
        self._starter = starter
        self._folder = folder
        self._load = Load(databases, scale.seconds)
        self._size = scale.sizes[-1]
        self._tokens = {size: self._sign(size) for size in scale.sizes}

    def _sign(self, size: Size, key: object = SECRET, algorithm: str = "HS256") -> Path:
        file = self._folder / f"{size.name}.{algorithm}"
        return write_tokens(file, self._databases.callers(size), key, algorithm)

    def _wrk(self, server: Server, connections: int, ids: int = 1) -> Callable[[], Sample]:
        return partial(self._load.wrk, server, self._tokens[server.size], connections, ids)

    def _warm(self, server: Server, tokens: Path | None = None) -> Server:
        """Let it connect, prepare its statements, and see every token."""
        replace(self._load, seconds=3).wrk(server, tokens or self._tokens[server.size], 64)
        return server

    def _run(self, cases: Cases, title: str) -> Results:
        self._databases.settle(self._size)
        return interleave(cases, self.scale.rounds, title)

    def contenders(self) -> Results:
        """Run pgbench by clients; the service and its contenders by connections."""
        idle: Results = {}
        cases: Cases = {
            (PGBENCH, clients): partial(self._load.pgbench, self._size, clients)
            for clients in self.scale.clients
        }
        with contextlib.ExitStack() as stack:
            for workers in (1, 2):
                kinds = {
                    GROUP: self._starter.service(self._size, workers),
                    EACH: self._starter.service(self._size, workers, settings=EACH_SETTINGS),
                    FASTAPI: self._starter.fastapi(self._size, workers),
                }
                for kind, starting in kinds.items():
                    name = contender(kind, workers)
                    server = stack.enter_context(starting)
                    time.sleep(1)
                    rss, pss = server.memory()
                    idle[name, IDLE] = Sample(math.nan, rss=rss, pss=pss)
                    self._warm(server)
                    for connections in self.scale.connections:
                        cases[name, connections] = self._wrk(server, connections)
            server = self._warm(stack.enter_context(self._starter.aiohttp(self._size)))
            cases[contender(AIOHTTP, 1), 64] = self._wrk(server, 64)
            before = self._count()
            results = self._run(cases, "contenders")
            marks = (
                sample.requests for (name, _), sample in results.items() if AIOHTTP not in name
            )
            if self._count() - before < self.scale.rounds * sum(marks) / 2:  # most are new
                raise SystemExit("marks were acknowledged that are not there")
            return results | idle

    def workers(self) -> Results:
        """Group commit, by workers, as many as there are cores for."""
        cases: Cases = {}
        with contextlib.ExitStack() as stack:
            for workers in (number for number in self.scale.workers if number <= CORES):
                server = self._warm(stack.enter_context(self._starter.service(self._size, workers)))
                for connections in (64, 512):
                    cases[contender(GROUP, workers), connections] = self._wrk(server, connections)
            return self._run(cases, "workers")

    def tokens(self) -> Results:
        """One worker, by algorithm and whether verified tokens are found in the cache."""
        cases: Cases = {}
        with contextlib.ExitStack() as stack:
            for algorithm, key in (("HS256", SECRET), ("RS256", self._starter.rsa_key)):
                tokens = self._sign(self._size, key, algorithm)
                for name, size in TOKEN_CACHES.items():
                    settings = {"auth_cache_size": size}
                    starting = self._starter.service(self._size, 1, algorithm, settings)
                    server = self._warm(stack.enter_context(starting), tokens)
                    cases[f"{algorithm}, {name}", 64] = partial(self._load.wrk, server, tokens, 64)
            return self._run(cases, "tokens")

    def in_flight(self) -> Results:
        """One worker, by statements in flight."""
        cases: Cases = {}
        with contextlib.ExitStack() as stack:
            for number in self.scale.in_flight:
                starting = self._starter.service(self._size, settings={"commit_in_flight": number})
                server = self._warm(stack.enter_context(starting))
                for connections in (64, 512):
                    cases[f"{number} in flight", connections] = self._wrk(server, connections)
            return self._run(cases, "in flight")

    def growth(self) -> Results:
        """One worker, by events and read rows in the database: marks, and the badge query."""
        cases: Cases = {}
        with contextlib.ExitStack() as stack:
            for size in self.scale.sizes:
                server = self._warm(stack.enter_context(self._starter.service(size)))
                cases[MARKS, size.rows] = partial(self._marks, server)
                cases[BADGES, size.rows] = self._wrk(server, 8, BADGE)
            return self._run(cases, "growth")

    def _marks(self, server: Server) -> Sample:
        if server.size == self.scale.sizes[0]:  # which a round's marks would multiply
            self._databases.forget(server.size)
        return self._wrk(server, 64)()

    def ids(self) -> Results:
        """One worker, by ids in each request, on few connections: 10,000 ids are a lot of work."""
        cases: Cases = {}
        with contextlib.ExitStack() as stack:
            for name, settings in ((GROUP, {}), (EACH, EACH_SETTINGS)):
                starting = self._starter.service(self._size, settings=settings)
                server = self._warm(stack.enter_context(starting))
                cases |= {(name, ids): self._wrk(server, 8, ids) for ids in self.scale.ids}
            return self._run(cases, "ids")

    def neighbours(self) -> Results:
        """One worker, by what others do: some connections of an organization mark single events."""
        victims = self._databases.callers(self._size)[: self._size.members]
        tokens = write_tokens(self._folder / "victims", victims, SECRET, "HS256")
        with self._starter.service(self._size) as server:
            self._warm(server, tokens)
            quiet = partial(self._load.wrk, server, tokens, VICTIM)

            def under_attack(attack: Attack) -> Sample:
                with under(attack, server, self._databases, self._folder, self.scale.seconds):
                    return quiet()

            cases: Cases = {(QUIET, VICTIM): quiet}
            for attack in ATTACKS:
                cases[attack.name, VICTIM] = partial(under_attack, attack)
            return self._run(cases, "neighbours")

    def bell(self) -> Results:
        """One worker, by organization, caller, window and what is read."""
        scale = self.scale
        bell = Bell(self._databases, self._load, self._folder, scale.bell, scale.turn)
        bell.fill()
        with bell.cases(self._starter) as cases:
            return interleave(cases, scale.rounds, "bell")

    def plans(self) -> Iterator[tuple[str, float, int]]:
        """Each writing statement, in each mode: its name, milliseconds, rows discarded."""
        shapes = ((1, 1), (1, self.scale.ids[-1]), (min(256, self._size.organizations), 1))
        for statement in ("mark_read", "mark_unread"):
            for mode in ("force_custom_plan", "force_generic_plan"):
                for callers, ids in shapes:
                    numbers = {"mode": mode, "callers": callers, "ids": ids}
                    name = f"{statement}, {mode}, {callers} callers x {ids:,} ids"
                    yield name, *self._databases.plan(self._size, statement, **numbers)

    def _count(self) -> int:
        return int(self._databases.run(self._size, "count.sql"))


def contender(kind: str, workers: int) -> str:
    """Its name in the tables."""
    return f"{kind}, {workers} worker{'s' * (workers > 1)}"
