"""What a read row costs, and what vacuum and partitions change: the tables of docs/scaling.md.

Times are of this machine as it was; bytes and pages are not.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from bench.postgres import Databases, Size
from service.database.connections import COMMON_SETTINGS, READ_SETTINGS, WRITE_SETTINGS
from service.database.queries import load_queries
from service.demo.postgres import Postgres

QUERIES = load_queries()
USERS, EVENTS = 20, 500  # of each organization, as in growth.sql
ALL = (None,) * 8  # the organization, and seven filters
CALLS = {
    "count, 500 looked at": (QUERIES.count_unread, (*ALL, 2_000)),
    "list of 20": (QUERIES.list_events, (*ALL, False, 0, 20, 50_000)),
    "page of 20": (QUERIES.page_events, (*ALL, False, None, 0, 21, 5_000)),
}
CALLERS = 256
LENGTHS = (36, 8)
PARTITIONS = 16
SERVER = {"fsync": "off", "shared_buffers": "1GB", "maintenance_work_mem": "512MB"}
SERVER |= {"max_wal_size": "24GB"}
SIZES = "select pg_relation_size('system_event_read'), pg_relation_size('system_event_read_pkey')"


@dataclass(frozen=True)
class Grown(Size):
    """A database of ids that long."""

    length: int

    @property
    def name(self) -> str:
        """Of the database."""
        return f"bench_growth_{self.length}"


class Table:
    """Our table, with so many rows, in a database that runs."""

    def __init__(self, session: "asyncpg.Connection[asyncpg.Record]", rows: int) -> None:
        """Ask by `session`."""
        self._session = session
        self._rows = rows

    async def timed(self, *commands: str) -> str:
        """Run them; the seconds that they took."""
        started = time.monotonic()
        for command in commands:
            await self._session.execute(command)
        return f"{time.monotonic() - started:.1f} s"

    async def sizes(self) -> list[str]:
        """Bytes per row of the table, and of its key."""
        return [f"{size / self._rows:.0f}" for size in await self._session.fetchrow(SIZES) or ()]

    async def costs(
        self, query: str, *arguments: object, settings: Mapping[str, str] = READ_SETTINGS
    ) -> tuple[int, int, float]:
        """Pages of a statement that is undone, rows fetched from the table, ms of planning."""
        undone = self._session.transaction()
        await undone.start()
        for name, value in {**COMMON_SETTINGS, **settings}.items():
            await self._session.execute("select set_config($1, $2, true)", name, value)
        explain = f"explain (analyze, buffers, timing off, format json) {query}"
        await self._session.fetchval(explain, *arguments)  # the catalog is read, and kept
        (said,) = json.loads(await self._session.fetchval(explain, *arguments))
        await undone.rollback()
        plan = said["Plan"]
        pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return pages, _fetched(plan), said["Planning Time"]

    async def reads(self) -> dict[str, tuple[int, int, float]]:
        """The costs of each call of one caller."""
        caller = await self._session.fetchval("select named('user', 1)")
        return {
            name: await self.costs(query, caller, *rest) for name, (query, rest) in CALLS.items()
        }

    async def writes(self) -> dict[str, tuple[int, int, float]]:
        """The costs of marks of what is read, and of unmarks."""
        some = "select array(select id from users order by md5(id) limit $1)"
        one, many = [await self._session.fetchval(some, number) for number in (1, CALLERS)]
        cases = {
            "one mark, read already": (QUERIES.mark_read, one),
            f"{CALLERS} marks of {CALLERS} callers, read already": (QUERIES.mark_read, many),
            f"{CALLERS} unmarks of {CALLERS} callers": (QUERIES.mark_unread, many),
        }
        return {
            name: await self.costs(
                query, ids, ids, ",".join(["250"] * len(ids)), settings=WRITE_SETTINGS
            )
            for name, (query, ids) in cases.items()
        }


def _fetched(node: dict[str, Any]) -> int:
    """Rows that index-only scans of our table took from the table, since it was not vacuumed."""
    own = node.get("Heap Fetches", 0) if "read_pkey" in node.get("Index Name", "") else 0
    return int(own) + sum(map(_fetched, node.get("Plans", ())))


async def measure(databases: Databases, rows: int, length: int) -> list[str]:
    """Fill a database with ids of that length; the lines that say what was seen."""
    size = Grown(rows // (USERS * EVENTS), EVENTS, length)
    rows = size.organizations * USERS * EVENTS
    databases.create(size)
    databases.run(size, "growth.sql", organizations=size.organizations, length=length)
    connection = await asyncpg.connect(databases.url(size))
    table = Table(connection, rows)
    lines = [f"\n## {rows:,} rows, ids of {length} characters\n"]
    heap, key = await table.sizes()
    lines.append(f"- bytes per row: table {heap}, key as it grows {key}")
    before = await table.reads()
    took = await table.timed("vacuum system_event_read")
    for name, (pages, fetched, _) in (await table.reads()).items():
        lines.append(
            f"- {name}: {before[name][0]:,} pages, {before[name][1]} rows from the table; "
            f"vacuumed {pages:,}, {fetched}"
        )
    lines.append(f"- vacuum: {took}")
    one = await table.reads() | await table.writes()
    took = await table.timed("reindex index system_event_read_pkey")
    lines.append(f"- bytes per row: key packed {(await table.sizes())[1]}; reindex {took}")
    dump = databases.server.data / "dump"
    took = await table.timed(f"copy system_event_read to '{dump}'")
    lines.append(f"- dump as text: {dump.stat().st_size / rows:.0f} bytes per row, {took}")
    like = "(like system_event_read including defaults)"
    await connection.execute(f"create table restored {like}")
    took = await table.timed(f"copy restored from '{dump}'")
    dump.unlink()
    added = "add primary key (organization_id, user_id, event_id)"
    lines.append(
        f"- restore: rows {took}, key {await table.timed(f'alter table restored {added}')}"
    )
    await connection.execute(f"create table parts {like} partition by hash (organization_id)")
    for number in range(PARTITIONS):
        values = f"for values with (modulus {PARTITIONS}, remainder {number})"
        await connection.execute(f"create table part_{number} partition of parts {values}")
    took = await table.timed("insert into parts select * from system_event_read")
    keyed = await table.timed(f"alter table parts {added}")
    cleaned = await table.timed("vacuum analyze parts")
    lines.append(f"- {PARTITIONS} partitions: rows {took}, keys {keyed}, vacuum analyze {cleaned}")
    await connection.execute("drop table restored")
    await connection.execute("alter table system_event_read rename to one_table")
    await connection.execute("alter table parts rename to system_event_read")
    for name, (pages, _, planning) in (await table.reads() | await table.writes()).items():
        lines.append(
            f"- {name}: {one[name][0]:,} pages, planned in {one[name][2]:.1f} ms; "
            f"partitioned {pages:,}, {planning:.1f} ms"
        )
    await connection.close()
    return lines


def main(arguments: list[str]) -> None:
    """Run a server of its own, and print what was seen."""
    parser = argparse.ArgumentParser("python -m bench.growth", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="at least 200,000")
    parser.add_argument("--programs", type=Path, help="the folder of another PostgreSQL's programs")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        server = Postgres(Path(name) / "data", asked.programs)
        server.initialize(settings=SERVER)
        server.start()
        try:
            for length in LENGTHS:
                print(*asyncio.run(measure(Databases(server), asked.rows, length)), sep="\n")
        finally:
            server.stop("immediate")


if __name__ == "__main__":
    main(sys.argv[1:])
