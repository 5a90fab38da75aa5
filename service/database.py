"""Connections to PostgreSQL: every statement bounded in time, and retried while that is safe.

Every statement of this service is idempotent, so one whose outcome is unknown may run again.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import asyncpg
from asyncpg import exceptions as pg

from service import config
from service.errors import BrokenStatement, Unavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Plans for statements that carry their rows with them: nested loops down the primary keys. They are
# the right plan whatever the batch, so they are made once (generic) and nothing else is considered.
# The statements do not depend on it (see sql/mark_read.sql); it saves planning.
WRITE_SETTINGS: Mapping[str, str] = {
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
}

# Waiting cannot mend these, but an operator can, without a restart of ours.
REFUSED = (pg.InvalidAuthorizationSpecificationError, pg.InvalidCatalogNameError)
# Another connection may do it: a primary that became a standby; a statement that was prepared here
# and is not there any more, behind a proxy.
UNFIT = (
    pg.ReadOnlySQLTransactionError,
    pg.InvalidSQLStatementNameError,
    pg.DuplicatePreparedStatementError,
)
# No arguments can mend these: class 42. Row security refuses a row in the same class.
BROKEN, MAY_BE_OF_A_ROW = pg.SyntaxOrAccessError, pg.InsufficientPrivilegeError
# The next attempt may succeed.
TRANSIENT = (
    OSError,  # refused, reset, no such socket, unknown host, TLS; and TimeoutError
    pg.PostgresConnectionError,  # class 08, and what asyncpg says of a lost connection
    pg.TransactionRollbackError,  # class 40: deadlock, serialization failure
    pg.InsufficientResourcesError,  # class 53: too many connections, disk full
    pg.ObjectNotInPrerequisiteStateError,  # class 55: lock not available
    pg.OperatorInterventionError,  # class 57: shutdown, starting up, statement timeout
    pg.InternalClientError,
    pg.TargetServerAttributeNotMatched,  # no primary among the hosts, yet
    *REFUSED,
    *UNFIT,
)

FIRST_PAUSE = 0.05  # seconds; doubled after each attempt, and drawn at random below
LONGEST_PAUSE = 1.0


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed on another attempt, perhaps on another connection."""
    if isinstance(error, pg.InterfaceError):
        # asyncpg's own word that a connection is gone, or that the URL cannot be used
        return not isinstance(error, pg.ClientConfigurationError)
    return isinstance(error, TRANSIENT)


def is_hopeless(error: BaseException) -> bool:
    """Whether a service that starts had better stop: waiting will not mend this."""
    return isinstance(error, (*REFUSED, ssl.SSLCertVerificationError)) or not is_transient(error)


class Database:
    """Up to so many connections, all with the same session settings, held while they work.

    Not asyncpg's pool: sessions are never changed, so there is nothing to reset, and to lend a
    connection out through a pool nearly doubles the CPU time of a small statement.
    """

    def __init__(
        self,
        database: config.Database,
        url: str,
        size: int,
        settings: Mapping[str, str],
        *,
        retry_slow: bool = True,
    ) -> None:
        """Prepare up to `size` connections to `url`; none is opened yet.

        A statement that runs into database.statement_timeout is tried again only with `retry_slow`:
        it may have waited for a lock; or it may be too much to ask, and the more so the next time.
        """
        self._hosts = config.split_hosts(url)
        self._retry_slow = retry_slow
        self._connect_timeout = database.connect_timeout
        self._statement_timeout = database.statement_timeout
        self._options: dict[str, Any] = {
            "statement_cache_size": database.statement_cache_size,
            # asyncpg does not bound the time in which it closes a statement that it forgets.
            "max_cached_statement_lifetime": 0,
            "server_settings": {
                "application_name": "systemevent-read",
                "jit": "off",
                "statement_timeout": str(round(database.statement_timeout * 1000)),
                **settings,
            },
        }
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._generation = 0  # connections of an earlier one are not used again

    async def close(self) -> None:
        """Close all connections, politely for a second."""
        self._generation += 1
        idle, self._idle = self._idle, []
        try:
            async with asyncio.timeout(1):
                await asyncio.gather(*(connection.close() for connection in idle))
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            for connection in idle:
                connection.terminate()

    async def fetch(self, query: str, *args: object, deadline: float) -> list[asyncpg.Record]:
        """Run an idempotent statement, again and again until it succeeds or `deadline` (loop time).

        Raises:
            Unavailable: no attempt succeeded; the cause is the last one's error.
            BrokenStatement: it can never succeed, with these arguments or others.
            asyncpg.PostgresError: it can never succeed with these arguments.
        """
        loop = asyncio.get_running_loop()
        pause = 0.0  # an idle connection may have died: the first retry is at once
        while True:
            try:
                return await self.attempt(query, *args, timeout=deadline - loop.time())
            except Exception as error:
                wait = random.uniform(0, pause)  # noqa: S311 - jitter
                if not is_transient(error):
                    if isinstance(error, BROKEN) and not isinstance(error, MAY_BE_OF_A_ROW):
                        raise BrokenStatement(str(error)) from error
                    raise
                too_slow = isinstance(error, pg.QueryCanceledError) and not self._retry_slow
                if too_slow or loop.time() + wait >= deadline:
                    raise Unavailable("the database is not available, try again later") from error
            await asyncio.sleep(wait)
            pause = min(pause * 2 or FIRST_PAUSE, LONGEST_PAUSE)

    async def attempt(
        self,
        query: str,
        *args: object,
        timeout: float,  # noqa: ASYNC109 - asyncpg bounds itself; a timeout around it does not
    ) -> list[asyncpg.Record]:
        """Run a statement once, within `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if self._slots.locked():
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        else:
            await self._slots.acquire()
        free_at = 0.0
        try:
            connection = await self._connection(deadline)
            started = loop.time()
            try:
                return await self._run(connection, query, args, deadline)
            except (TimeoutError, asyncio.CancelledError):
                if not self._retry_slow and started < deadline:
                    # The server works on. It must not have more to do than there are slots.
                    free_at = started + self._statement_timeout
                raise
        finally:
            if free_at > loop.time():
                loop.call_at(free_at, self._slots.release)
            else:
                self._slots.release()

    async def _run(
        self, connection: Connection, query: str, args: Sequence[object], deadline: float
    ) -> list[asyncpg.Record]:
        """Run a statement on a connection, and keep it for the next if it is good."""
        generation, good = self._generation, False
        # The server gives up first; the client does when the server no longer answers.
        limit = min(deadline - asyncio.get_running_loop().time(), self._statement_timeout + 1)
        try:
            if limit <= 0:
                raise TimeoutError  # noqa: TRY301 - as late as a statement that was cut off
            async with asyncio.timeout(limit + 1):  # what asyncpg may forget to bound
                rows: list[asyncpg.Record] = await connection.fetch(query, *args, timeout=limit)
            good = True
        except TimeoutError:
            if limit > self._statement_timeout:
                # The server should have given up. Its other connections are as dead.
                self._generation += 1
                while self._idle:
                    self._idle.pop().terminate()
            raise
        except asyncpg.PostgresError as error:
            good = not isinstance(error, UNFIT)  # the session is as it was
            raise
        else:
            return rows
        finally:
            if good and generation == self._generation:
                self._idle.append(connection)
            else:
                # Cut off in the middle. A polite end waits for the server, which may be frozen.
                connection.terminate()

    async def _connection(self, deadline: float) -> Connection:
        """Take the connection used last, or open one.

        It is to the first host that answers, and is of the kind that the URL asks for. asyncpg
        would look for that too, but with one time limit for all hosts, which the first may use up.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        *others, last = self._hosts
        for number, host in enumerate(others):
            with contextlib.suppress(Exception):
                return await self._connect(host, deadline, len(self._hosts) - number)
        return await self._connect(last, deadline, 1)

    async def _connect(self, host: str, deadline: float, hosts_left: int) -> Connection:
        left = max(deadline - asyncio.get_running_loop().time(), 0.001)
        limit = min(left / hosts_left, self._connect_timeout)
        return await asyncpg.connect(host, timeout=limit, **self._options)
