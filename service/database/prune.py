"""Removes read rows that nobody needs, in steps that marking does not feel.

Rows are looked for without any lock, and then removed by their keys, some hundred at a time, each
time in a transaction of its own. What takes longer than a blink, since somebody holds a lock or the
disk is slow, is taken back and tried in halves; a row that still waits when it is alone is left for
the end. So nobody else waits longer than that, and no clock of ours decides how much is tried.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from service import config
from service.database.connections import WRITE_SETTINGS, Connections
from service.database.connector import Connector
from service.database.failures import is_locked, is_too_slow
from service.database.outage import Outage, reason
from service.database.queries import Queries, load_queries
from service.errors import ConfigError
from service.observing import Observers

Key = tuple[str, str, int]  # organization, user, event

LEAST = -(2**63)
LOOK = 2000  # rows, or organizations of a user, that one look covers
TIMEOUT = 60.0  # seconds of a look, which holds no lock, and for a server that hangs
PATIENCE = 2 * TIMEOUT  # longer, so that sessions need no further limit
LARGEST = 500  # rows that are removed at a time
LOCK_TIMEOUT = 0.01  # seconds that others' rows stay locked while one is waited for
BLINK = 0.1  # seconds that removing them may take
MAX_ASIDE = 1000  # rows that others hold locked; where there are more, prune gives up
LAST_TRIES = 5
PAUSE = 0.5  # seconds before each of them

# A log that shows its events to some alone must not look as if the others were gone.
SETTINGS = {**WRITE_SETTINGS, "row_security": "off"}


@dataclass
class Progress:
    """What has been done so far."""

    rows: int = 0  # in the table, as statistics say; 0: they do not
    looked: int = 0
    found: Counter[str] = field(default_factory=Counter)  # by reason: gone, old, user
    deleted: int = 0
    left: int = 0  # found, and left since others hold them locked


class Prune:
    """One run on one database."""

    def __init__(
        self, progress: Progress, looks: Connections, deletes: Connections, queries: Queries
    ) -> None:
        """Look on one kind of connections, remove on the other, and note it in `progress`."""
        self._progress = progress
        self._looks = looks
        self._deletes = deletes
        self._queries = queries
        self._size = LARGEST
        self._aside: list[Key] = []

    async def events(self, older_than: int | None, *, dry_run: bool) -> None:
        """Remove rows whose event is gone or, unless that is None, older than so many days.

        Raises:
            ConfigError: the log is empty, which is more likely a mistake than the truth.
        """
        ((self._progress.rows, has_events),) = await self._look(self._queries.prune_size)
        if not has_events:
            raise ConfigError(
                "database.url: system_event_log has no event, so all read state would go; "
                "if that is meant: truncate system_event_read"
            )

        async def look(after: Key) -> list[asyncpg.Record]:
            page = await self._look(self._queries.prune_events, *after, LOOK, older_than)
            self._progress.looked += page[-1]["number"] if page else 0
            return page

        await self._walk(look, dry_run=dry_run)

    async def user(self, user_id: str, *, dry_run: bool) -> None:
        """Remove all rows of a user, in every organization."""

        async def look(after: Key) -> list[asyncpg.Record]:
            organization, _, event = after
            query = self._queries.prune_user
            return await self._look(query, organization, user_id, event, LOOK, LOOK)

        await self._walk(look, dry_run=dry_run)

    async def _look(self, query: str, *args: object) -> list[asyncpg.Record]:
        return await self._looks.fetch(query, *args, seconds=PATIENCE)

    async def _walk(
        self, look: Callable[[Key], Awaitable[list[asyncpg.Record]]], *, dry_run: bool
    ) -> None:
        """Go through the table in the order of its key, a look at a time."""
        after: Key = ("", "", LEAST)
        while page := await look(after):
            keys = [
                (row["organization_id"], row["user_id"], row["event_id"])
                for row in page
                if row["reason"]
            ]
            self._progress.found.update(row["reason"] for row in page if row["reason"])
            if not dry_run:
                await self._delete(keys)
            last = page[-1]
            after = (last["organization_id"], last["user_id"], last["event_id"])
        for _ in range(LAST_TRIES):
            if not self._aside:
                break
            await asyncio.sleep(PAUSE)
            aside, self._aside = self._aside, []
            self._progress.left = 0
            await self._delete(aside)

    async def _delete(self, keys: Sequence[Key]) -> None:
        start = 0
        while start < len(keys):
            some = keys[start : start + self._size]
            organizations, users, events = zip(*some, strict=True)
            try:
                ((count,),) = await self._deletes.fetch(
                    self._queries.prune_delete,
                    organizations,
                    users,
                    ",".join(map(str, events)),
                    seconds=PATIENCE,
                )
            except asyncpg.PostgresError as error:
                if not (is_locked(error) or is_too_slow(error)):
                    raise
                self._size = max(len(some) // 2, 1)
                if len(some) == 1:
                    self._set_aside(some[0])
                    start += 1
            else:
                self._progress.deleted += count
                self._size = min(2 * self._size, LARGEST)
                start += len(some)

    def _set_aside(self, key: Key) -> None:
        if len(self._aside) == MAX_ASIDE:
            raise ConfigError(
                f"database.url: more than {MAX_ASIDE} read rows are locked by others; "
                "see pg_locks, and run it again later"
            )
        self._aside.append(key)
        self._progress.left = len(self._aside)


async def prune(
    database: config.Database,
    progress: Progress,
    *,
    older_than: int | None = None,
    user_id: str | None = None,
    dry_run: bool = False,
) -> None:
    """Remove what is asked for; `progress` says how far it is, also after an error.

    Raises:
        ConfigError: the database cannot be reached or refuses; what is done stays.
    """
    queries, connector = load_queries(), Connector(database)
    outage = Outage(connector.hosts, Observers())

    def connections(**limits: float) -> Connections:
        milliseconds = {name: str(round(seconds * 1000)) for name, seconds in limits.items()}
        settings = {**SETTINGS, **milliseconds}
        return Connections(connector, queries, outage, 1, settings, TIMEOUT)

    looks = connections()
    deletes = connections(lock_timeout=LOCK_TIMEOUT, statement_timeout=BLINK)
    run = Prune(progress, looks, deletes, queries)
    try:
        if user_id is None:
            await run.events(older_than, dry_run=dry_run)
        else:
            await run.user(user_id, dry_run=dry_run)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ConfigError(f"database.url: {reason(error)}") from error
    finally:
        await asyncio.gather(looks.close(), deletes.close())
