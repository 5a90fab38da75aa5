"""The plans: what each statement reads, whatever the statistics, the settings and the batch."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import asyncpg
import pytest

from service.database import WRITE_SETTINGS
from service.queries import load_queries
from tests.cluster import Cluster
from tests.conftest import psql

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
QUERIES = load_queries()

# One large organization (50,000 events, 20,000 read by u1 and 10 by 255 others each) among 40
# small ones; and a new one, with the same last day and nothing before. Nothing makes statistics
# by itself.
DATA = """
alter table users set (autovacuum_enabled = off);
alter table system_event_log set (autovacuum_enabled = off);
alter table system_event_read set (autovacuum_enabled = off);
insert into users
select 'u' || n, 'large', 'name', 'mail', case n when 1 then 255 else 0 end
from generate_series(1, 300) n;
insert into users
select 's' || o || '-' || n, 'small-' || o, 'name', 'mail', 0
from generate_series(1, 40) o, generate_series(1, 20) n;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id)
select 'large', id, now() - (50_001 - id) * interval '6 minutes', 2, 0, 'thing', 'u' || id % 300 + 1
from generate_series(1, 50_000) id;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id)
select 'small-' || o, id, now() - id * interval '1 hour', 2, 0, 'thing', 's' || o || '-1'
from generate_series(1, 40) o, generate_series(1, 500) id;
insert into users values ('newcomer', 'new', 'name', 'mail', 255);
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id)
select 'new', id, now() - (241 - id) * interval '6 minutes', 2, 0, 'thing', 'newcomer'
from generate_series(1, 240) id;
insert into system_event_read (organization_id, user_id, event_id)
select 'large', 'u1', id from generate_series(1, 20_000) id;
insert into system_event_read (organization_id, user_id, event_id)
select 'large', 'u' || n, id from generate_series(2, 256) n, generate_series(1, 10) id;
insert into system_event_read (organization_id, user_id, event_id)
select 'small-' || o, 's' || o || '-1', id from generate_series(1, 40) o, generate_series(1, 50) id;
"""
WINDOW = 240  # events in the last 24 hours: one in 6 minutes

SERVICE = {"jit": "off", **WRITE_SETTINGS}
POOLER = {"jit": "on"}  # what remains when a pooler drops the settings: the server's own
BATCHES = {
    "1 caller, 1 id": (["u1"], [20_001]),
    "1 caller, 10,000 ids": (["u1"], list(range(15_001, 25_001))),
    "256 callers, 1 id each": ([f"u{n}" for n in range(1, 257)], [5]),
}
BIG = {"system_event_log", "system_event_read"}
KEYS = {
    "system_event_log": ("organization_id", "id"),
    "system_event_read": ("organization_id", "user_id", "event_id"),
}


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def url(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A database with a large organization, never analyzed or just analyzed."""
    name = f"plans_{request.param}"
    psql(cluster.url(), f"create database {name} template template_migrated")
    psql(cluster.url(name), DATA, *(["analyze"] if request.param == "analyzed" else []))
    yield cluster.url(name)
    psql(cluster.url(), f"drop database {name} with (force)")


@pytest.fixture(params=["force_generic_plan", "force_custom_plan"])
async def session(
    request: pytest.FixtureRequest, url: str, settings: dict[str, str]
) -> AsyncIterator[Connection]:
    """A session with `settings`, whose plans are generic or custom."""
    mode = {"plan_cache_mode": request.param, "statement_timeout": "5s"}
    connection = await asyncpg.connect(url, server_settings={**settings, **mode})
    yield connection
    await connection.close()


@dataclass
class Node:
    """A node of a plan, with what EXPLAIN (analyze, format json) says of it."""

    said: dict[str, Any]

    def __iter__(self) -> Iterator[Self]:
        """Itself and all below."""
        yield self
        for below in self.said.get("Plans", ()):
            yield from type(self)(below)

    @property
    def relation(self) -> str | None:
        """The table it reads."""
        name = self.said.get("Relation Name")
        return name if self.said["Node Type"] != "ModifyTable" else None

    @property
    def condition(self) -> str:
        """What it looks for in an index."""
        return str(self.said.get("Index Cond", ""))

    def touches_events(self) -> bool:
        """Whether it reads events or read rows, or joins them."""
        return self.relation != "users" and any(node.relation in BIG for node in self)

    def uses_whole_primary_key(self) -> bool:
        """Whether it looks up single rows of its table by all columns of the primary key."""
        return self.said.get("Index Name") == f"{self.relation}_pkey" and all(
            f"({column} = " in self.condition for column in KEYS[self.relation or ""]
        )

    @property
    def discarded(self) -> float:
        """Rows that it read in vain."""
        once = sum(
            self.said.get(f"Rows Removed by {what}", 0)
            for what in ("Filter", "Join Filter", "Index Recheck")
        )
        return float(once * self.said["Actual Loops"])

    @property
    def read(self) -> float:
        """Rows that it read, those in vain included."""
        return float(self.said["Actual Rows"] * self.said["Actual Loops"]) + self.discarded


async def explain(session: Connection, query: str, types: str, *arguments: str) -> list[Node]:
    """Run a statement and take it back; the nodes of its plan, but not those of its triggers."""
    transaction = session.transaction()
    await transaction.start()
    try:
        await session.execute(f"prepare explained ({types}) as {query}")
        plan = await session.fetchval(
            f"explain (analyze, buffers, format json) execute explained ({', '.join(arguments)})"
        )
    finally:
        await transaction.rollback()
        await session.execute("deallocate all")
    return list(Node(json.loads(plan)[0]["Plan"]))


def array(values: Sequence[str | int], of: str) -> str:
    """Values as an array in SQL."""
    return f"array[{', '.join(map(repr, values))}]::{of}[]"


@pytest.mark.parametrize("settings", [SERVICE, POOLER], ids=["service", "pooler"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("query", [QUERIES.mark_read, QUERIES.mark_unread], ids=["mark", "unmark"])
async def test_marking_reads_what_it_is_asked_for(
    session: Connection,
    settings: dict[str, str],
    query: str,
    batch: tuple[list[str], list[int]],
) -> None:
    """No row is thrown away; and with the service's settings nothing but primary keys is used.

    Without them a small table may be read instead of looked up in, but once, and into a hash.
    """
    callers, ids = batch
    owners = [caller for caller in callers for _ in ids]
    arguments = (array(callers, "text"), array(owners, "text"), array(ids * len(callers), "bigint"))
    nodes = await explain(session, query, "text[], text[], bigint[]", *arguments)

    assert sum(node.discarded for node in nodes if node.touches_events()) == 0
    reached = [node for node in nodes if node.relation in BIG]
    assert reached
    for node in reached:
        if settings is SERVICE or node.said["Node Type"] != "Seq Scan":
            assert node.uses_whole_primary_key()
            assert node.read <= len(owners)
        else:
            assert node.said["Actual Loops"] == 1


LIST = "text, timestamptz, timestamptz, text, smallint, smallint, text, text, bool, bigint, bigint"
DAY_AGO, NOW = "now() - interval '24 hours'", "now()"
TAKE = 20


async def explain_list(
    session: Connection, caller: str, since: str = "null", until: str = "null", unread: str = "off"
) -> list[Node]:
    """The plan of the list of a caller's events in a window of time."""
    anything = ["null"] * 5
    page = ["0", str(TAKE)]
    arguments = [f"'{caller}'", since, until, *anything, f"'{unread}'", *page]
    return await explain(session, QUERIES.list_events, LIST, *arguments)


@pytest.mark.parametrize("settings", [{"jit": "off"}], ids=["service"])
@pytest.mark.parametrize("caller", ["u1", "u5"], ids=["owner", "user"])
@pytest.mark.parametrize("unread", ["off", "on"], ids=["all", "unread"])
@pytest.mark.parametrize(
    ("since", "until"),
    [("null", "null"), (DAY_AGO, NOW)],
    ids=["default", "given"],
)
async def test_a_list_reads_its_window(
    session: Connection, caller: str, since: str, until: str, unread: str
) -> None:
    """The log is cut at both ends of the window; the read state is looked up by its whole key."""
    nodes = await explain_list(session, caller, since, until, unread)
    window = [node for node in nodes if '"timestamp"' in node.condition]
    assert len(window) == 1
    assert "timestamp >= " in window[0].condition.replace('"', "")
    assert "timestamp < " in window[0].condition.replace('"', "")
    for node in nodes:
        if node.relation in BIG:
            assert node in window or node.uses_whole_primary_key()
    for table, rows in (("system_event_log", WINDOW + TAKE), ("system_event_read", WINDOW)):
        assert sum(node.read for node in nodes if node.relation == table) <= rows


@pytest.mark.parametrize("settings", [{"jit": "off"}], ids=["service"])
async def test_a_list_costs_the_same_after_a_long_history(session: Connection) -> None:
    """50,000 older events and 20,000 of them read cost at most a page or two more per event."""
    pages = {}
    for caller in ("u1", "newcomer"):
        plan = (await explain_list(session, caller))[0].said
        pages[caller] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert pages["u1"] <= pages["newcomer"] + 2 * WINDOW
