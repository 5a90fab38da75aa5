"""Is the database there, and is its schema the one that this version knows?"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable

import asyncpg
import msgspec

from service.database import Database, is_hopeless
from service.errors import ConfigError
from service.filters import NOTHING
from service.keys import Keys
from service.queries import Queries, migration_names

log = logging.getLogger(__name__)

PROBE_TIMEOUT = 2.0  # seconds
LONGEST_PAUSE = 5.0


class Health:
    """Probes the database with the service's own statements."""

    def __init__(
        self,
        queries: Queries,
        database: Database,
        keys: Keys,
        give_up: Callable[[ConfigError], None],
    ) -> None:
        """Probe `database`; call `give_up` where, at the start, waiting for it is in vain."""
        self._queries = queries
        self._database = database
        self._keys = keys
        self._give_up = give_up
        self.shutting_down = False

    async def problem(self) -> str | None:
        """Say why requests cannot be served now; None when they can."""
        if self.shutting_down:
            return "shutting down"
        if not self._keys.ready:
            return "no keys that verify tokens"
        try:
            return await self._probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return f"database: {type(error).__name__}"

    async def _probe(self) -> str | None:
        query = self._queries.applied_migrations
        try:
            rows = await self._database.attempt(query, timeout=PROBE_TIMEOUT)
        except asyncpg.UndefinedTableError:
            rows = []  # nobody has ever migrated
        if pending := migration_names() - {row["migration_id"] for row in rows}:
            return f"pending migrations: {', '.join(sorted(pending))}"
        # For nobody and nothing: says whether the role may do it, and write here.
        for query in (self._queries.mark_read, self._queries.mark_unread):
            await self._database.attempt(query, [], [], [], timeout=PROBE_TIMEOUT)
        nobody = ("", *msgspec.structs.astuple(NOTHING))
        await self._database.attempt(self._queries.list_events, *nobody, timeout=PROBE_TIMEOUT)
        return None

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Wait for the database, in the background, while the service already answers."""
        task = asyncio.create_task(self._wait())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _wait(self) -> None:
        pause = 0.1
        while True:
            try:
                problem = await self._probe()
            except Exception as error:  # noqa: BLE001 - sorted out below
                if is_hopeless(error):
                    self._give_up(ConfigError(f"database.url: {_describe(error)}"))
                    return
                log.warning("waiting for the database: %s", type(error).__name__)
            else:
                if problem:
                    self._give_up(ConfigError(f"{problem}; run: systemevent-read migrate"))
                else:
                    log.info("ready")
                return
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
            pause = min(pause * 2, LONGEST_PAUSE)


def _describe(error: Exception) -> str:
    """What the database said; of another error only the kind, since its text may quote the URL."""
    if isinstance(error, asyncpg.PostgresError):
        return " ".join(str(error).split())
    return type(error).__name__
