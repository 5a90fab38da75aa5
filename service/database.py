"""Connections to PostgreSQL: every statement bounded in time, and retried while that is safe.

Every statement of this service is idempotent, so one whose outcome is unknown may run again.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import asyncpg
from asyncpg import exceptions as pg

from service import config
from service.errors import Unavailable

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

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
# The next attempt may succeed.
TRANSIENT = (
    OSError,  # refused, reset, no such socket, unknown host, TLS; and TimeoutError
    pg.PostgresConnectionError,  # class 08, and what asyncpg says of a lost connection
    pg.TransactionRollbackError,  # class 40: deadlock, serialization failure
    pg.InsufficientResourcesError,  # class 53: too many connections, disk full
    pg.ObjectNotInPrerequisiteStateError,  # class 55: lock not available
    pg.OperatorInterventionError,  # class 57: shutdown, starting up, statement timeout
    pg.ReadOnlySQLTransactionError,  # a primary that became a standby
    pg.InternalClientError,
    pg.TargetServerAttributeNotMatched,  # no primary among the hosts, yet
    *REFUSED,
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


class _TooLateError(TimeoutError):
    """The wait for a connection used up the time for the statement."""


class Database:
    """A pool of connections, all with the same session settings."""

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
        self._retry_slow = retry_slow
        self._statement_timeout = database.statement_timeout
        timeout = str(round(database.statement_timeout * 1000))
        self._pool = asyncpg.create_pool(
            connect=partial(_connect, hosts=config.split_hosts(url)),
            min_size=0,
            max_size=size,
            # Sessions are never changed: nothing to reset, and no round trip to pay for it.
            reset=_keep,
            max_inactive_connection_lifetime=0,
            timeout=database.connect_timeout,
            # The server gives up first; the client does when the server no longer answers.
            command_timeout=database.statement_timeout + 1,
            statement_cache_size=database.statement_cache_size,
            server_settings={
                "application_name": "systemevent-read",
                "jit": "off",
                "statement_timeout": timeout,
                **settings,
            },
        )

    async def open(self) -> None:
        """Make the pool usable. Does not need the database to be there."""
        await self._pool

    async def close(self) -> None:
        """Close all connections, politely for a second."""
        try:
            async with asyncio.timeout(1):
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def fetch(self, query: str, *args: object, deadline: float) -> list[asyncpg.Record]:
        """Run an idempotent statement, again and again until it succeeds or `deadline` (loop time).

        Raises:
            Unavailable: no attempt succeeded; the cause is the last one's error.
            asyncpg.PostgresError: the statement can never succeed.
        """
        loop = asyncio.get_running_loop()
        pause = 0.0  # an idle connection may have died: the first retry is at once
        while True:
            try:
                return await self.attempt(query, *args, timeout=deadline - loop.time())
            except Exception as error:
                wait = random.uniform(0, pause)  # noqa: S311 - jitter
                if not is_transient(error):
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
        async with self._connection(timeout) as connection:
            limit = min(deadline - loop.time(), self._statement_timeout + 1)
            if limit <= 0:
                raise _TooLateError
            try:
                rows: list[asyncpg.Record] = await connection.fetch(query, *args, timeout=limit)
            except TimeoutError:
                if limit > self._statement_timeout:
                    # The server should have given up before. Its other connections are as dead.
                    await self._pool.expire_connections()
                raise
            return rows

    @contextlib.asynccontextmanager
    async def _connection(self, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109
        """Borrow a connection; one whose state is in doubt does not come back."""
        connection: Connection = await self._pool.acquire(timeout=max(timeout, 0.001))
        try:
            yield connection
        except pg.ReadOnlySQLTransactionError:
            connection.terminate()
            raise
        except (asyncpg.PostgresError, _TooLateError):
            raise  # the session is as it was
        except BaseException:
            # Cut off in the middle. A polite release waits for the server, which may be frozen.
            connection.terminate()
            raise
        finally:
            await self._pool.release(connection)


async def _connect(
    *_: object,
    hosts: Sequence[str],
    **options: Any,  # noqa: ANN401 - asyncpg's
) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect to the first host that answers, and is of the kind that the URL asks for.

    asyncpg would do it, but with one time limit for all hosts, which the first may use up.
    """
    for host in hosts[:-1]:
        with contextlib.suppress(Exception):
            return await asyncpg.connect(host, **options)
    return await asyncpg.connect(hosts[-1], **options)


async def _keep(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Reset nothing."""
