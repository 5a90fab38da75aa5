"""Connections to PostgreSQL, and one attempt at a statement, bounded in time on both sides."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import asyncpg

from service.database.connector import Connection, Connector
from service.database.failures import NotYet, is_unfit
from service.database.outage import Outage
from service.database.queries import Queries

GRACE = 0.5  # seconds beyond the server's own limit, after which it counts as unreachable
IDLE = 60.0  # seconds after which a connection that nobody needs is closed
LONGEST_PAUSE = 1.0  # seconds between two looks at what was left behind

COMMON_SETTINGS: Mapping[str, str] = {
    "jit": "off",
    "TimeZone": "UTC",  # of a platform's times without zone
    "lock_timeout": "0",  # waiting is bounded by the statement's own limit; pools.py has exceptions
    # A statement whose client is gone ends, though it waits for a lock.
    "client_connection_check_interval": "1s",
}
# Plans for statements that carry their rows with them: nested loops down the primary keys, which
# are right whatever the batch. The statements do not depend on these (see sql/mark_read.sql); they
# save planning. Where a page costs little, PostgreSQL expects less from a plan for one batch than
# it costs to make, so after five times it keeps one for all. It could be told to keep one
# (plan_cache_mode), but a distributed PostgreSQL refuses an insert that is planned so.
WRITE_SETTINGS: Mapping[str, str] = {
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "random_page_cost": "0.1",
}
# A plan that was made when a table was empty reads all of it, and is kept while it grows.
READ_SETTINGS: Mapping[str, str] = {"enable_seqscan": "off"}

Check = Callable[[Connection], Awaitable[None]]


class Connections:
    """Up to so many connections, all with the same session settings, held while they work.

    Not asyncpg's pool: sessions are never changed, so there is nothing to reset, and to lend a
    connection out through a pool nearly doubles the CPU time of a small statement.

    A statement never runs on the server for longer than its caller waits: either its deadline is
    further away than the session's statement_timeout, or it runs in a transaction with a limit of
    its own. Where the server does not keep to that (it is frozen or away, or its commit waits for a
    replica), the connection is dropped, and its place counts as taken until the server says that
    the process behind it is gone: what is left behind there is bounded by `size` as well.
    """

    def __init__(
        self,
        connector: Connector,
        queries: Queries,
        outage: Outage,
        size: int,
        settings: Mapping[str, str],
        statement_timeout: float,
    ) -> None:
        """Prepare up to `size` connections to the database; none is opened yet.

        Args:
            connector: makes them.
            queries: for limits, and for what was left behind.
            outage: is told whether connections can be made.
            size: connections at a time.
            settings: of the sessions.
            statement_timeout: of the sessions, in seconds.
        """
        self._connector = connector
        self._queries = queries
        self._outage = outage
        self._statement_timeout = statement_timeout
        self._settings = {
            **COMMON_SETTINGS,
            "statement_timeout": str(round(statement_timeout * 1000)),
            **settings,
        }
        self.size = size
        self.in_use = 0  # with those that are being opened
        self._places = asyncio.Semaphore(size)
        self._idle: list[tuple[Connection, float]] = []  # with the loop time of their last use
        self._generation = 0  # connections of an earlier one are not used again
        self._left_behind: list[int] = []  # server processes; each has a place
        self._watch: asyncio.Task[None] | None = None
        self._trim: asyncio.TimerHandle | None = None

    @property
    def left_behind(self) -> int:
        """How many server processes may still work on statements that were given up."""
        return len(self._left_behind)

    @property
    def idle(self) -> int:
        """How many connections wait for the next statement."""
        return len(self._idle)

    async def close(self) -> None:
        """Close all connections, politely for a second."""
        self._generation += 1
        if self._trim:
            self._trim.cancel()
        if self._watch:
            self._watch.cancel()
        idle, self._idle = self._idle, []
        try:
            async with asyncio.timeout(1):
                await asyncio.gather(*(connection.close() for connection, _ in idle))
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            for connection, _ in idle:
                connection.terminate()

    async def fetch(
        self, query: str, *args: object, seconds: float, check: Check | None = None
    ) -> list[asyncpg.Record]:
        """Run a statement once, within so many `seconds`; after a `check` of its connection.

        Raises:
            TimeoutError: no place, or no connection, in that time.
            NotYet: what the check raised; the connection is good.
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError: see failures.py.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        if self._places.locked():
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        else:
            await self._places.acquire()
        self.in_use += 1
        try:
            try:
                connection = await self._connection(deadline)
            except BaseException:
                self._places.release()
                raise
            return await self._run(connection, query, args, deadline, check)
        finally:
            self.in_use -= 1

    async def _run(
        self,
        connection: Connection,
        query: str,
        args: Sequence[object],
        deadline: float,
        check: Check | None,
    ) -> list[asyncpg.Record]:
        """Run a statement on a connection, and keep it for the next if it is good."""
        loop = asyncio.get_running_loop()
        generation = self._generation
        left = deadline - loop.time()
        if left <= 0:
            self._keep(connection, generation)
            raise TimeoutError
        limit = min(left, self._statement_timeout)
        # A driver's own time limit would ask the server to cancel: a commit that waits for a
        # replica would then be done without it, and a later attempt would call that committed.
        alarm = loop.call_later(limit + GRACE, self._cut_off, connection)
        try:
            if check:
                await check(connection)
            if left < self._statement_timeout:
                rows = await self._limited(connection, query, args, limit)
            else:
                rows = await connection.fetch(query, *args)
        except asyncpg.PostgresError as error:
            if connection.is_closed():  # lost, even in the commit: asyncpg's own word for that
                self._leave(connection)
            elif is_unfit(error):
                self._drop(connection)
            else:  # the session is as it was
                self._keep(connection, generation)
            raise
        except NotYet:
            self._keep(connection, generation)
            raise
        except BaseException:  # lost, or given up: nobody knows what the server makes of it
            self._leave(connection)
            raise
        else:
            self._keep(connection, generation)
            return rows
        finally:
            alarm.cancel()

    async def _limited(
        self, connection: Connection, query: str, args: Sequence[object], limit: float
    ) -> list[asyncpg.Record]:
        """Run a statement in a transaction with a limit of its own."""

        async def attempt() -> list[asyncpg.Record]:
            async with connection.transaction():
                await connection.fetch(self._queries.limit, str(max(round(limit * 1000), 1)))
                return await connection.fetch(query, *args)

        try:
            return await attempt()
        except asyncpg.InvalidCachedStatementError:
            # A column has another type since. asyncpg repeats it by itself, but not in here.
            return await attempt()

    def _cut_off(self, connection: Connection) -> None:
        """Give up on a server that does not answer in time; its other connections are as dead."""
        self._generation += 1
        while self._idle:
            self._idle.pop()[0].terminate()
        connection.terminate()

    def _keep(self, connection: Connection, generation: int) -> None:
        if generation != self._generation or connection.is_closed():
            self._drop(connection)
            return
        loop = asyncio.get_running_loop()
        self._idle.append((connection, loop.time()))
        if len(self._idle) > 1 and self._trim is None:
            self._trim = loop.call_later(IDLE, self._close_idle)
        self._places.release()

    def _drop(self, connection: Connection) -> None:
        # A polite end waits for the server, which may be frozen.
        connection.terminate()
        self._places.release()

    def _close_idle(self) -> None:
        """Close what was not needed for a while: the least used are at the front."""
        loop = asyncio.get_running_loop()
        while len(self._idle) > 1 and self._idle[0][1] + IDLE <= loop.time():
            self._idle.pop(0)[0].terminate()
        more = len(self._idle) > 1
        self._trim = loop.call_later(IDLE, self._close_idle) if more else None

    def _leave(self, connection: Connection) -> None:
        """Drop a connection in the middle of a statement; its place is free when that has ended."""
        connection.terminate()
        self._left_behind.append(connection.pid)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_left_behind())

    async def _watch_left_behind(self) -> None:
        """Ask the server that answers now, until nothing is left behind there."""
        pause = 0.05
        while self._left_behind:
            asked = list(self._left_behind)
            with contextlib.suppress(Exception):  # away: it may still work on them
                there = await self._still_there(asked)
                for pid in set(asked) - there:
                    while pid in self._left_behind:
                        self._left_behind.remove(pid)
                        self._places.release()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _still_there(self, pids: Sequence[int]) -> set[int]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connector.timeout + 1):
            connection = await self._open(loop.time() + self._connector.timeout)
            try:
                rows = await connection.fetch(self._queries.backends, [str(pid) for pid in pids])
            finally:
                connection.terminate()
        return {row["pid"] for row in rows}

    async def _connection(self, deadline: float) -> Connection:
        """Take the connection used last, or open one."""
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        try:
            connection = await self._open(deadline)
        except Exception as error:
            self._outage.failed(error)
            raise
        self._outage.worked()
        return connection

    async def _open(self, deadline: float) -> Connection:
        return await self._connector.connect(deadline, self._settings)
