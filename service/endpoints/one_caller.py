"""Statements for one caller: they look the caller's organization up by themselves.

A distributed database refuses that: it has to know the organization to find the shard. Once it
has refused a statement, sql/caller.sql is asked first, and each statement is given what that said.
It looks again: where the caller has moved in between, there is no row.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import asyncpg
from aiohttp import web
from cachetools import LRUCache

from service.config import Limits
from service.database.connections import Connections
from service.database.failures import is_unsupported
from service.database.queries import Queries
from service.database.replica import Replica
from service.database.retry import fetch
from service.endpoints.order import Wish, admit
from service.errors import HungUp
from service.observing import Observers, StatementRan
from service.turns import Turns
from service.web.marked import Marked
from service.web.request_info import info

Asked = TypeVar("Asked")
REMEMBERED = 10_000  # users whose organization is known, for turns alone


class TurnsByOrganization:
    """Turns of callers, of which the users of one organization together cannot take all."""

    def __init__(self, places: int, connections: Connections, queries: Queries) -> None:
        """Let a caller have half of the places, and an organization all but one.

        Who is where is asked by `connections`.
        """
        self._callers = Turns(max(1, places // 2))
        self._organizations = Turns(max(1, places - 1))
        self._connections = connections
        self._queries = queries
        self._known: LRUCache[str, str] = LRUCache(REMEMBERED)

    @contextlib.asynccontextmanager
    async def take(self, caller: str, deadline: float) -> AsyncIterator[None]:
        """Wait for a turn of this caller until `deadline` (loop time), and hold it.

        Who has moved since it was asked takes the turns of the one before: it decides nothing else.

        Raises:
            Unavailable: there was none in time, or the database is away.
        """
        # First the caller's, so that who asks for much does not take the organization's.
        async with self._callers.take(caller, deadline):
            organization: str | None = self._known.get(caller)
            if organization is None:
                query = self._queries.caller
                rows = await fetch(self._connections, query, caller, deadline=deadline)
                if organization := rows[0]["organization_id"] if rows else None:
                    self._known[caller] = organization
            async with self._organizations.take(organization or "", deadline):
                yield


@dataclass(frozen=True)
class Nearby:
    """A replica, for what is only read."""

    replica: Replica
    connections: Connections  # to it
    marked: Marked


class OneCaller:
    """Runs them, on connections that all callers share."""

    nearby: Nearby | None = None

    def __init__(
        self,
        kind: str,
        limits: Limits,
        connections: Connections,
        queries: Queries,
        observers: Observers,
        turns: Turns | TurnsByOrganization,
    ) -> None:
        """Run them within `limits`, each in a turn of its caller.

        `observers` are told of each, under the name `kind`.
        """
        self.limits = limits
        self.queries = queries
        self._kind = kind
        self._observers = observers
        self._connections = connections
        self._turns = turns
        self._asks_first = False

    def moment(self) -> int:
        """By when all is committed that can be seen now, where a replica may not have it; or 0."""
        return math.ceil(self.nearby.replica.now()) if self.nearby else 0

    async def rows(
        self,
        request: web.Request,
        wish: Wish[Asked],
        query: str,
        *arguments: object,
        after: float = 0,
    ) -> list[asyncpg.Record]:
        """Run `query` with $1 the caller, $2 null or the organization, and the others.

        What was committed by `after`, a moment, is seen. Returns at least one row.

        Raises:
            Refusal: see admit(); it did not succeed within the deadline (Unavailable); or nothing
                was begun, since the client is gone (HungUp).
        """
        asked = info(request)
        deadline = asked.arrived + self.limits.deadline
        since = asyncio.get_running_loop().time()
        tell = partial(self._tell, since)
        run = partial(fetch, self._connections, deadline=deadline, tell=tell)
        organization: str | None = None
        async with self._turns.take(asked.user_id, deadline):
            if request.transport is None:
                raise HungUp("the client hung up before its turn came")
            while True:
                if not wish.refusal and (organization is not None or not self._asks_first):
                    given = (asked.user_id, organization, *arguments)
                    if near := self.nearby:
                        read = partial(near.replica.fetch, near.connections, query, *given)
                        least = max(after, near.marked.moment(request))
                        if rows := await read(after=least, deadline=deadline, tell=tell):
                            return rows
                    try:
                        if rows := await run(query, *given):
                            return rows
                    except asyncpg.FeatureNotSupportedError as error:
                        if organization is not None or not is_unsupported(error):
                            raise
                        self._asks_first = True
                callers = await run(self.queries.caller, asked.user_id)
                admit(callers[0] if callers else None, wish)
                # Ask again, also for a user who got an organization, or another one, in between.
                if self._asks_first:
                    organization = callers[0]["organization_id"]

    def _tell(self, since: float, started: float, failure: str | None) -> None:
        took = asyncio.get_running_loop().time() - started
        self._observers.tell(StatementRan(self._kind, 1, None, started - since, took, failure))
