"""The connections of one worker: for marks, alone or all, for lists, for counts, for /ready.

Each kind has its own, so that none can keep another from its turn.
"""

import asyncio
from collections.abc import Mapping

from service.config import Config
from service.database.connections import READ_SETTINGS, WRITE_SETTINGS, Connections
from service.database.connector import Connector
from service.database.group_commit import LARGE_IN_FLIGHT
from service.database.outage import Outage
from service.database.queries import Queries

LOCK_TIMEOUT = 0.05  # seconds that a shared statement waits for a locked row; see group_commit.py
SPARE = 6  # for what is split, and for what is left behind
APART = 32  # statements of single requests that wait for a locked row
# Seconds after which one of these asks anew. Who waits for a row has a lock on the tables as well,
# so an `alter table` waits for it, and everybody else behind that.
APART_TIMEOUT = 1.0
COUNTS = 2  # counts at a time: short ones, which every open page asks for again and again
MARK_ALL = 2  # chunks of mark-alls at a time: each keeps a core of PostgreSQL busy
PROBE_TIMEOUT = 2.0  # seconds


class Pools:
    """All of them, on one database."""

    def __init__(
        self, config: Config, queries: Queries, connector: Connector, outage: Outage
    ) -> None:
        """Make them; no connection is opened yet."""
        database = config.database

        def connections(
            size: int, statement_timeout: float, settings: Mapping[str, str]
        ) -> Connections:
            return Connections(connector, queries, outage, size, settings, statement_timeout)

        def lock_timeout(seconds: float) -> Mapping[str, str]:
            return {**WRITE_SETTINGS, "lock_timeout": str(round(seconds * 1000))}

        # For statements that many requests share, of both kinds and lanes
        self.writes = connections(
            2 * (config.commit.in_flight + LARGE_IN_FLIGHT) + SPARE,
            database.statement_timeout,
            lock_timeout(LOCK_TIMEOUT),
        )
        # For requests that wait for a locked row, each until its own deadline
        self.apart = connections(APART, database.statement_timeout, lock_timeout(APART_TIMEOUT))
        self.reads = connections(database.pool_size, database.statement_timeout, READ_SETTINGS)
        # For counts, which would wait behind lists of many callers otherwise
        self.counts = connections(COUNTS, database.statement_timeout, READ_SETTINGS)
        # For mark-alls: a chunk that waits for a locked row lets others go first
        self.mark_all = connections(
            MARK_ALL, database.statement_timeout, lock_timeout(LOCK_TIMEOUT)
        )
        # For /ready, which would have to wait for its turn otherwise
        self.probe = connections(2, PROBE_TIMEOUT, WRITE_SETTINGS)
        # For how far it has come, where there is a replica
        self.position = connections(1, PROBE_TIMEOUT, READ_SETTINGS)
        self.named: dict[str, Connections] = {
            "writes": self.writes,
            "apart": self.apart,
            "reads": self.reads,
            "counts": self.counts,
            "mark_all": self.mark_all,
            "probe": self.probe,
        }

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(connections.close() for connections in self.named.values()))
