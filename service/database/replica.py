"""Reading from a replica, where it shows what its caller has to see.

A replica is behind, by ms or by minutes. So once a second the primary is asked for its time and its
position in the log; what was committed by that time lies before that position. Before a read, its
connection is asked how far the server at the other end has replayed: that one is complete up to the
latest such time whose position it has reached. Where that is too early for the caller, or anything
fails, there are no rows, and the primary is asked.

All go by the primary's clock, so it does not matter what those of the instances say. It may be set
back by less than a second between two looks, since web/marked.py goes further than that; after
more, and after a failover, what was known is forgotten.
"""

import asyncio
import contextlib
import errno
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import asyncpg

from service.config import Config
from service.database.connections import READ_SETTINGS, Connections
from service.database.connector import Connection, Connector
from service.database.failures import NotYet, Unusable, is_away
from service.database.outage import Outage, reason
from service.database.pools import COUNTS, PROBE_TIMEOUT
from service.database.queries import Queries
from service.observing import Observers, ReplicaLeft, ReplicaRead, ReplicaUsed

INTERVAL = 1.0  # seconds between two looks
PAUSE = 5.0  # seconds for which it is left alone after a read has failed
NOT_ASKED = "not asked yet"


class Replica:
    """The replica as one worker sees it, and the worker's connections to it."""

    def __init__(
        self,
        config: Config,
        queries: Queries,
        primary: Connections,
        probes: Sequence[tuple[str, Sequence[object]]],
        observers: Observers,
    ) -> None:
        """Prepare it; nobody reads there before watch() has found that it can be used.

        `primary` are connections to the primary, of which one is needed from time to time; `probes`
        are what is read, with arguments that find nothing.

        Raises:
            ConfigError: database.read_url cannot be used.
        """
        database = config.database
        connector = Connector(database, replica=True)
        # That it is away is told from here.
        untold = Outage(connector.hosts, Observers())

        def connections(size: int, statement_timeout: float) -> Connections:
            return Connections(connector, queries, untold, size, READ_SETTINGS, statement_timeout)

        self.reads = connections(database.pool_size, database.statement_timeout)
        self.counts = connections(COUNTS, database.statement_timeout)
        self._asking = connections(1, PROBE_TIMEOUT)
        self.named: Mapping[str, Connections] = {
            "replica_reads": self.reads,
            "replica_counts": self.counts,
            "replica_probe": self._asking,
        }
        self._queries = queries
        self._primary = primary
        self._probes = probes
        self._observers = observers
        self._hosts = connector.hosts
        self._most = database.read_lag
        # Of the primary, the latest first: time and position
        self._history: deque[tuple[float, int]] = deque(maxlen=int(self._most / INTERVAL) + 2)
        self._line = ""  # the database, and its timeline
        self._offset = time.time() - time.monotonic()  # of the primary's clock, at most
        self._complete = -math.inf  # up to when, at the last look
        self._alone_until = 0.0  # loop time
        self.problem: str | None = NOT_ASKED  # why nobody reads there

    def now(self) -> float:
        """The primary's time, or a little more: seconds since 1970."""
        return time.monotonic() + self._offset

    @property
    def lag(self) -> float:
        """Seconds by which it is behind, as far as we have seen; infinite before the first look."""
        return self.now() - self._complete

    @property
    def is_used(self) -> bool:
        """Whether anybody reads there."""
        return self.problem is None

    async def fetch(
        self,
        connections: Connections,
        query: str,
        *args: object,
        after: float,
        deadline: float,
        tell: Callable[[float, str | None], None],
    ) -> list[asyncpg.Record]:
        """Read on one of `connections`, where what was committed by `after` is there; else no rows.

        Takes no more than half of the time until `deadline`. `tell` as in retry.fetch().
        """
        loop = asyncio.get_running_loop()
        started: float = loop.time()
        rows: list[asyncpg.Record] = []
        after = max(after, self.now() - self._most)
        outcome = "left" if self.problem else "not yet"
        if self.problem is None and self._history and after <= self._history[0][0]:
            try:
                rows = await connections.fetch(
                    query,
                    *args,
                    seconds=(deadline - started) / 2,
                    check=partial(self._check, after),
                )
                outcome = "answered" if rows else "empty"
                tell(started, None)
            except NotYet:
                pass
            except Exception as error:  # noqa: BLE001 - the primary has the last word
                outcome = "failed"
                tell(started, type(error).__name__)
                if is_away(error):
                    self._alone_until = loop.time() + PAUSE
                    self._note(reason(error))
        self._observers.tell(ReplicaRead(outcome))
        return rows

    async def _check(self, after: float, connection: Connection) -> None:
        """Raise NotYet where a server is not complete up to a time."""
        if self._time_of(await connection.fetch(self._queries.replayed)) < after:
            raise NotYet

    def _time_of(self, rows: Sequence[asyncpg.Record]) -> float:
        """Up to when a server is complete that says this of itself.

        Raises:
            Unusable: it is no replica of the primary.
        """
        replayed, line = rows[0]["replayed"], rows[0]["line"]
        if replayed is None:
            raise Unusable(errno.EPROTO, "it replays nothing: no replica, or promoted")
        if line != self._line:
            raise Unusable(errno.EPROTO, "not the same database and timeline as the primary's")
        return next((at for at, position in self._history if position <= replayed), -math.inf)

    async def watch(self) -> None:
        """Look at both servers, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(Exception):  # the primary's absence is told elsewhere
                await self._look_at_primary()
                if loop.time() >= self._alone_until:
                    self._note(await self._look())
            await asyncio.sleep(INTERVAL)

    async def _look_at_primary(self) -> None:
        sent = time.monotonic()
        (row,) = await self._primary.fetch(self._queries.position, seconds=PROBE_TIMEOUT)
        was_set_back = self._history and row["at"] < self._history[0][0]
        if was_set_back or row["line"] != self._line:
            self._history.clear()
            self._complete = row["at"]  # its lag counts from now on
        self._line, self._offset = row["line"], row["at"] - sent
        self._history.appendleft((row["at"], row["position"]))

    async def _look(self) -> str | None:
        """Say why it cannot be used; None where it can."""
        try:
            rows = await self._asking.fetch(self._queries.replayed, seconds=PROBE_TIMEOUT)
            complete = self._time_of(rows)
            self._complete = max(self._complete, complete)
            # Once it is left, it has to catch up further, or it would come and go.
            if self.lag > self._most / (1 if self.is_used else 2):
                return f"{self.lag:.0f} s behind"
            if complete == -math.inf and not self.is_used:
                return self.problem  # it lacks the first that we know of; soon it will not
            for query, nothing in self._probes if not self.is_used else ():
                await self._asking.fetch(query, *nothing, seconds=PROBE_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - whatever it is, the primary is there
            return reason(error)
        return None

    def _note(self, problem: str | None) -> None:
        """Use it or leave it, and tell that where it is new."""
        if problem is None and not self.is_used:
            self._observers.tell(ReplicaUsed(self._hosts))
        elif problem not in (None, NOT_ASKED) and self.problem in (None, NOT_ASKED):
            self._observers.tell(ReplicaLeft(self._hosts, problem))
        self.problem = problem
