"""Is the database there, and is its schema the one that this version knows?"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg

from service.auth.keys import Keys
from service.database import platform
from service.database.connections import Connections
from service.database.failures import is_hopeless, is_transient
from service.database.outage import reason
from service.database.pools import PROBE_TIMEOUT
from service.database.queries import Queries, migration_names
from service.database.replica import Replica
from service.errors import ConfigError

log = logging.getLogger(__name__)

LONGEST_PAUSE = 5.0  # seconds between two attempts of a start


class Health:
    """Probes the database with the service's own statements."""

    def __init__(
        self,
        queries: Queries,
        probes: Sequence[tuple[str, Sequence[object]]],
        database: Connections,
        keys: Keys,
        give_up: Callable[[ConfigError], None],
    ) -> None:
        """Probe `database`; call `give_up` where, before it ever worked, waiting will not help.

        `probes` are the endpoints' statements, each with arguments that do nothing for nobody.
        """
        self._queries = queries
        self._probes = probes
        self._database = database
        self._keys = keys
        self._give_up = give_up
        self.shutting_down = False
        self.is_ready = False  # whether it ever was
        self.replica: Replica | None = None  # which is watched, and never waited for

    async def problem(self) -> str | None:
        """Say why requests cannot be served now; None when they can."""
        if self.shutting_down:
            return "shutting down"
        if not self._keys.ready:
            return "no keys that verify tokens"
        return await self.database_problem()

    async def database_problem(self) -> str | None:
        """Say why the database cannot be used now; None when it can."""
        try:
            return await self._probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return f"database: {reason(error)}"

    async def _probe(self) -> str | None:
        """Say what is wrong with the database, and how to mend it."""
        query = self._queries.session
        ((role, schemas, encoding),) = await self._database.fetch(query, seconds=PROBE_TIMEOUT)
        if encoding != "UTF8":
            return f"the database keeps text as {encoding}; make one with: encoding 'UTF8'"
        query = self._queries.applied_migrations
        try:
            rows = await self._database.fetch(query, seconds=PROBE_TIMEOUT)
        except asyncpg.UndefinedTableError:
            rows = []  # nobody has ever migrated, or not where this role looks
        pending = migration_names() - {row["migration_id"] for row in rows}
        faults = await self._database.fetch(self._queries.platform_faults, seconds=PROBE_TIMEOUT)
        if fault := platform.faults(faults, may_be_missing=bool(pending)):
            return fault
        if pending:
            names = ", ".join(sorted(pending))
            where = "" if rows else f" (role {role} looks in: {schemas or 'no schema'})"
            return f"pending migrations: {names}{where}; run: systemevent-read migrate"
        # For nobody and nothing: says whether the role may do it, and write here.
        try:
            for query, nothing in self._probes:
                await self._database.fetch(query, *nothing, seconds=PROBE_TIMEOUT)
        except asyncpg.InsufficientPrivilegeError as error:
            grants = f"systemevent-read grants {role}"
            return f"role {role}: {reason(error)}; see deploy/grants.sql, or run: {grants}"
        except asyncpg.PostgresError as error:
            if is_transient(error):
                raise
            name = self._queries.name(query)
            return f"reached, but it refuses sql/{name}.sql: {reason(error)}"
        return None

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Wait for the database, in the background, while the service already answers."""
        tasks = [asyncio.create_task(self._wait())]
        if self.replica:
            tasks.append(asyncio.create_task(self.replica.watch()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        pause, told = 0.1, ""
        while not self.is_ready:
            problem, is_final = "", True
            try:
                problem = await self._probe() or ""
            except Exception as error:  # noqa: BLE001 - sorted out here
                problem, is_final = reason(error), is_hopeless(error)
            if problem and is_final and problem != told:
                told = problem
                self._give_up(ConfigError(f"database.url: {problem}"))
            if not problem and self._keys.ready:
                self.is_ready = True
                log.info("ready")
                return
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, LONGEST_PAUSE)
