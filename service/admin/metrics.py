"""What is counted, for Prometheus: it listens to what is told, and looks at what nobody tells.

All of it goes on the board, from which a scrape reads it for all workers. To add a metric: its line
in families.py, what counts it here, and its row in docs/metrics.md.
"""

import asyncio
import contextlib
import math
import platform
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from service import __version__, logs
from service.admin.board import Place, Series
from service.admin.families import FAMILIES, SECONDS, expose
from service.auth.tokens import Tokens
from service.database.group_commit import GroupCommit
from service.database.pools import Pools
from service.database.replica import Replica
from service.observing import KeySetFailed, KeySetFetched, Observers, ReplicaRead, StatementRan
from service.web.request_info import RequestInfo

INTERVAL = 1.0  # seconds between two looks
# What callers make up is not counted by its name, or there would be no end of series.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"
SUM = len(SECONDS) + 1  # where a histogram of seconds has its sum


@dataclass
class _Look:
    """A number that is not told, and has to be looked up."""

    index: int  # where it is written
    read: Callable[[], float]
    grows: bool  # a counter: what it has grown by is added
    before: float = 0.0


class Metrics:
    """Counts for one worker, and shows what all of them have counted."""

    def __init__(
        self,
        place: Place,
        routes: frozenset[str],
        pools: Pools,
        tokens: Tokens,
        commits: Sequence[GroupCommit],
        replica: Replica | None = None,
    ) -> None:
        """Count at `place`; `routes` are the paths that are counted by their names."""
        self._place = place
        self._routes = routes
        # For each method, path and status, a histogram that is not on the board yet: plain numbers
        # take a fifth of the time of shared ones.
        self._requests: dict[tuple[str, str, int], list[float]] = {}
        place.begin()
        for series, _ in list(place.read()):  # of the worker that was here before
            if FAMILIES[series.name].kind == "gauge":
                place.numbers[place.find(series)] = math.nan
        self._looks = [
            _Look(self._index(name, *labels), read, FAMILIES[name].kind == "counter")
            for name, labels, read in (*_untold(pools, tokens, commits), *_of_replica(replica))
        ]
        for look in self._looks:
            look.before = look.read()

    def listen(self, observers: Observers) -> None:
        """Count what is told."""
        observers.listen(RequestInfo, self._request)
        observers.listen(StatementRan, self._statement)
        observers.listen(ReplicaRead, lambda it: self._add(1, "replica_reads_total", it.outcome))
        observers.listen(
            KeySetFetched, lambda _: self._set(time.time(), "key_set_timestamp_seconds")
        )
        observers.listen(KeySetFailed, lambda _: self._add(1, "key_set_failures_total"))

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Look while the context lasts, so that another worker can tell it."""
        task = asyncio.create_task(self._look_for_ever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._look()

    async def _look_for_ever(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(INTERVAL)

    def _look(self) -> None:
        """Bring all numbers on the board up to date."""
        numbers = self._place.numbers
        for (method, route, status), counts in self._requests.items():
            if total := sum(counts[:SUM]):
                self._add(total, "requests_total", method, route, str(status))
                first = self._index("request_duration_seconds", route)
                for position, count in enumerate(counts):
                    numbers[first + position] += count
                    counts[position] = 0
        for it in self._looks:
            now = it.read()
            if it.grows:
                numbers[it.index] += now - it.before
                it.before = now
            else:
                numbers[it.index] = now

    def expose(self, accept: str, *, database_up: bool) -> tuple[bytes, str]:
        """Return the text of what all workers have counted, and its content type.

        `accept` is the header that asks for one; `database_up` is found out by who calls.
        """
        self._look()
        places = list(self._place.board.used())
        version = (__version__, platform.python_version())
        found: dict[Series, list[Sequence[float]]] = {
            Series("build_info", version): [[1.0]],
            Series("database_up"): [[float(database_up)]],
            Series("workers"): [[float(place.is_alive)] for place in places],
        }
        for place in places:
            for series, numbers in place.read():
                if place.is_alive or FAMILIES[series.name].kind != "gauge":
                    found.setdefault(series, []).append(numbers)
        return expose(found, accept)

    def _index(self, name: str, *labels: str) -> int:
        return self._place.find(Series(name, labels), FAMILIES[name].size)

    def _set(self, value: float, name: str, *labels: str) -> None:
        self._place.numbers[self._index(name, *labels)] = value

    def _add(self, value: float, name: str, *labels: str) -> None:
        self._place.numbers[self._index(name, *labels)] += value

    def _observe(self, value: float, name: str, *labels: str) -> None:
        first, buckets = self._index(name, *labels), FAMILIES[name].buckets
        self._place.numbers[first + bisect_left(buckets, value)] += 1
        self._place.numbers[first + len(buckets) + 1] += value

    def _request(self, told: RequestInfo) -> None:
        """Count a request: in as few steps as can be, since each mark is."""
        key = (told.method, told.path, told.status)
        counts = self._requests.get(key) or self._histogram(*key)
        counts[bisect_left(SECONDS, told.seconds)] += 1
        counts[SUM] += told.seconds
        if told.cause is not None:
            self._add(1, "refusals_total", str(told.status), told.cause)

    def _histogram(self, method: str, path: str, status: int) -> list[float]:
        named = method if method in METHODS else OTHER
        route = path if path in self._routes else OTHER
        return self._requests.setdefault((named, route, status), [0] * (SUM + 1))

    def _statement(self, told: StatementRan) -> None:
        self._observe(told.waited, "statement_wait_seconds", told.kind)
        self._observe(told.took, "statement_duration_seconds", told.kind)
        if told.failure is not None:
            self._add(1, "statement_failures_total", told.kind, told.failure)
        elif told.ids is not None:
            self._observe(told.requests, "statement_requests", told.kind)
            self._observe(told.ids, "statement_ids", told.kind)


def _untold(
    pools: Pools, tokens: Tokens, commits: Sequence[GroupCommit]
) -> Iterator[tuple[str, Sequence[str], Callable[[], float]]]:
    """Yield a metric, its labels, and how to know its number."""
    for pool, connections in pools.named.items():
        for state in ("in_use", "idle", "left_behind"):
            yield "database_connections", (pool, state), partial(getattr, connections, state)
        yield "database_connections_max", (pool,), partial(getattr, connections, "size")
    for commit in commits:
        for name, lane in commit.lanes.items():
            yield "queued_requests", (commit.kind, name), partial(getattr, lane, "queued")
    yield "verified_tokens", (), partial(getattr, tokens, "remembered")
    yield "verified_token_hits_total", (), partial(getattr, tokens, "hits")
    yield "verified_token_misses_total", (), partial(getattr, tokens, "misses")
    yield "log_lines_dropped_total", (), logs.dropped


def _of_replica(
    replica: Replica | None,
) -> Iterator[tuple[str, Sequence[str], Callable[[], float]]]:
    if replica:
        yield "replica_used", (), partial(getattr, replica, "is_used")
        yield "replica_lag_seconds", (), partial(getattr, replica, "lag")
