"""The plans: what each statement reads, whatever the statistics, the settings and the batch."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import asyncpg
import pytest

from service.database.connections import READ_SETTINGS, WRITE_SETTINGS
from service.database.queries import load_queries
from tests.conftest import connect, new_database, psql
from tests.support.cluster import Cluster

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
QUERIES = load_queries()

# Organizations of very different size: what is right for one is wrong for another. In each, user 1
# owns it and has read half, 2 is in five workspaces, 3 in 10,000; and 20,000 other memberships. The
# last day of new is that of large, without what was before. Nothing makes statistics by itself.
SIZES = {"large": 60000, "middle": 6000, "small": 600, "tiny": 20}  # events in 30 days
QUIET = """
alter table users set (autovacuum_enabled = off);
alter table workspace_user set (autovacuum_enabled = off);
alter table system_event_log set (autovacuum_enabled = off);
alter table system_event_read set (autovacuum_enabled = off);
"""
EVENTS = """
insert into users
select '{name}-' || n, '{name}', 'name', 'mail', case n when 1 then 255 else 0 end
from generate_series(1, 300) n;
insert into workspace_user
select 'w' || w, '{name}-2' from generate_series(1, 5) w
union all
select 'w' || w, '{name}-3' from generate_series(1, 10000) w;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
select
  '{name}', id, now() - ({size} + 1 - id) * interval '30 days' / {size}, id % 14, id % 3, 'thing',
  '{name}-' || id % 300 + 1, case when id % 3 > 0 then 'w' || id % 1000 end
from generate_series({first}, {size}) id;
insert into system_event_read (organization_id, user_id, event_id)
select '{name}', '{name}-1', id from generate_series({first}, {size} / 2) id
union all
select '{name}', '{name}-' || n, id from generate_series(2, 256) n, generate_series(1, 10) id;
"""
LARGE, *OTHERS = (EVENTS.format(name=name, size=size, first=1) for name, size in SIZES.items())
NEW = EVENTS.format(name="new", size=60000, first=58001)
BESIDE = """
insert into workspace_user
select 'x' || n, 'large-' || n % 250 + 10 from generate_series(1, 20000) n;
"""
STATES = {
    "fresh": (QUIET, LARGE, *OTHERS, NEW, BESIDE),
    "analyzed": (QUIET, LARGE, *OTHERS, NEW, BESIDE, "vacuum analyze"),
    "stale": (QUIET, LARGE, "analyze", *OTHERS, NEW, BESIDE),
}
MODES = {  # how many times before, and what is asked for
    "generic": (0, "force_generic_plan"),
    "first": (0, "auto"),  # a plan for these arguments, as the next four
    "eighth": (7, "auto"),  # after them PostgreSQL chooses
}

SERVICE = {"jit": "off", **WRITE_SETTINGS}
READS = {"jit": "off", **READ_SETTINGS}
# As if tables were large enough for several processes to read them.
EAGER = {
    "parallel_setup_cost": "0",
    "parallel_tuple_cost": "0",
    "min_parallel_table_scan_size": "0",
    "min_parallel_index_scan_size": "0",
}
POOLER = {"jit": "on"}  # what remains when a pooler drops the settings: the server's own
BATCHES = {
    "1 caller, 1 id": (["large-1"], [30_001]),
    "1 id in a small organization": (["small-1"], [301]),
    "1 caller, 10,000 ids": (["large-1"], list(range(25_001, 35_001))),
    "256 callers, 1 id each": ([f"large-{n}" for n in range(1, 257)], [5]),
}
BIG = {"system_event_log", "system_event_read"}
KEYS = {
    "system_event_log": ("organization_id", "id"),
    "system_event_read": ("organization_id", "user_id", "event_id"),
}


@pytest.fixture(scope="module", params=STATES)
def url(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A database with all organizations: never analyzed, just analyzed, or when it was smaller."""
    with new_database(cluster, f"plans_{request.param}") as url:
        psql(url, *STATES[request.param])
        yield url


@dataclass
class Session:
    """A connection, and how many times it runs a statement before it looks at the plan."""

    connection: Connection
    before: int

    async def explain(self, query: str, types: str, *arguments: str) -> list["Node"]:
        """Run a statement, each time taken back; its nodes, but not those of its triggers."""
        await self.connection.execute(f"prepare explained ({types}) as {query}")
        statement = f"execute explained ({', '.join(arguments)})"
        try:
            for _ in range(self.before):
                await self._undone(statement)
            plan = await self._undone(f"explain (analyze, buffers, format json) {statement}")
        finally:
            await self.connection.execute("deallocate all")
        return list(Node(json.loads(plan)[0]["Plan"]))

    async def _undone(self, statement: str) -> Any:
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            return await self.connection.fetchval(statement)
        finally:
            await transaction.rollback()


@pytest.fixture(params=MODES)
async def session(
    request: pytest.FixtureRequest, url: str, settings: dict[str, str]
) -> AsyncIterator[Session]:
    """A session with `settings`, whose plans are generic, custom, or what PostgreSQL chooses."""
    before, mode = MODES[request.param]
    more = {"plan_cache_mode": mode, "statement_timeout": "5s"}
    connection = await connect(url, server_settings={**settings, **more})
    yield Session(connection, before)
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
        """Rows that it read and threw away."""
        once = sum(
            self.said.get(f"Rows Removed by {what}", 0)
            for what in ("Filter", "Join Filter", "Index Recheck")
        )
        return float(once * self.said["Actual Loops"])

    @property
    def read(self) -> float:
        """Rows that it read, also those that it threw away."""
        return float(self.said["Actual Rows"] * self.said["Actual Loops"]) + self.discarded


def array(values: Sequence[str]) -> str:
    """Texts as an array in SQL."""
    return f"array[{', '.join(map(repr, values))}]"


@pytest.mark.parametrize("settings", [SERVICE, POOLER], ids=["service", "pooler"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("query", [QUERIES.mark_read, QUERIES.mark_unread], ids=["mark", "unmark"])
async def test_marking_reads_what_it_is_asked_for(
    session: Session,
    settings: dict[str, str],
    query: str,
    batch: tuple[list[str], list[int]],
) -> None:
    """No row is thrown away; and with the service's settings nothing but primary keys is used.

    Without them a small table may be read instead of looked up in, but once, and into a hash.
    """
    callers, ids = batch
    owners = [caller for caller in callers for _ in ids]
    digits = ",".join(map(str, ids * len(callers)))
    arguments = (array(callers), array(owners), f"'{digits}'")
    nodes = await session.explain(query, "text[], text[], text", *arguments)

    assert sum(node.discarded for node in nodes if node.touches_events()) == 0
    reached = [node for node in nodes if node.relation in BIG]
    assert reached
    for node in reached:
        if settings is SERVICE or node.said["Node Type"] != "Seq Scan":
            assert node.uses_whole_primary_key()
            assert node.read <= len(owners)
        else:
            assert node.said["Actual Loops"] == 1


FIRST = ("''", "''", "'-9223372036854775808'")
LATER = ("'middle'", "'middle-1'", "500")
LOOKED = 1000


@pytest.mark.parametrize("settings", [SERVICE, POOLER], ids=["service", "pooler"])
@pytest.mark.parametrize("older_than", ["null", "7"])
@pytest.mark.parametrize("after", [FIRST, LATER], ids=["first", "later"])
async def test_pruning_reads_what_it_looks_at(
    session: Session, settings: dict[str, str], after: Sequence[str], older_than: str
) -> None:
    """A page of read rows, and an event for each; nothing of it is thrown away."""
    types = "text, text, bigint, bigint, integer"
    nodes = await session.explain(QUERIES.prune_events, types, *after, str(LOOKED), older_than)
    for node in nodes:
        if node.relation == "system_event_read":
            assert node.read <= LOOKED
        if node.relation == "system_event_log":
            assert node.uses_whole_primary_key()
            assert (node.said["Actual Rows"], node.discarded) == (1, 0)
    assert pages(nodes) <= 8 * LOOKED


@pytest.mark.parametrize("settings", [SERVICE, POOLER], ids=["service", "pooler"])
@pytest.mark.parametrize("user", ["large-1", "small-2", "nobody"])
async def test_the_rows_of_a_user_are_found_without_those_of_others(
    session: Session, settings: dict[str, str], user: str
) -> None:
    """However many there are: five organizations, and the rows that are returned.

    PostgreSQL 15 says how many rows an organization has on average, in whole numbers.
    """
    types = "text, text, bigint, bigint, integer"
    after = ("''", f"'{user}'", "'-9223372036854775808'")
    nodes = await session.explain(QUERIES.prune_user, types, *after, str(LOOKED), "100")
    of_user = LOOKED if user == "large-1" else 10
    read = [node for node in nodes if node.relation == "system_event_read"]
    assert sum(node.read for node in read) <= 2 * (5 + 1) + of_user
    assert pages(nodes) <= 8 * (5 + 6) + of_user


@pytest.mark.parametrize("settings", [SERVICE], ids=["service"])
@pytest.mark.parametrize("count", [1, 500])
async def test_pruning_deletes_by_whole_keys(
    session: Session, settings: dict[str, str], count: int
) -> None:
    """One row or some hundred."""
    ids = ",".join(map(str, range(1, count + 1)))
    arguments = (array(["large"] * count), array(["large-1"] * count), f"'{ids}'")
    nodes = await session.explain(QUERIES.prune_delete, "text[], text[], text", *arguments)
    (node,) = (node for node in nodes if node.relation == "system_event_read")
    assert node.uses_whole_primary_key()
    assert (node.read, node.discarded) == (count, 0)


@pytest.mark.parametrize("query", [QUERIES.mark_read, QUERIES.mark_unread], ids=["mark", "unmark"])
async def test_a_mark_is_not_planned_anew_each_time(url: str, query: str) -> None:
    """With the settings of the service PostgreSQL keeps a plan, though nothing tells it to."""
    connection = await connect(url, server_settings=SERVICE)
    for _ in range(8):
        await connection.fetch(query, ["large-1"], ["large-1"], "5")
    kept = "select generic_plans from pg_prepared_statements where statement = $1"
    assert await connection.fetchval(kept, query) == 3
    await connection.close()


LIST = (
    "text, text, timestamptz, timestamptz, text, smallint, smallint, text, text, bool, bigint, "
    "bigint, bigint"
)
TAKE = 20
# The window, and which part of an organization's events is in it
WINDOWS = {
    "a day": ("null", "null", 1 / 30),
    "29 days": ("now() - interval '29 days'", "null", 29 / 30),
    "10 days long ago": ("now() - interval '25 days'", "now() - interval '15 days'", 1 / 3),
}
ROLES = {"owner": 1, "member": 2, "member of 10,000 workspaces": 3}
ALL = 2**63 - 2


async def explain_list(
    session: Session,
    caller: str,
    window: str = "a day",
    max_scan: int = ALL,
    *,
    given: bool = False,
) -> list[Node]:
    """The plan of the list of what a caller has not read; with the organization given, or not."""
    organization = f"'{caller.partition('-')[0]}'" if given else "null"
    since, until, _ = WINDOWS[window]
    anything = ["null"] * 5
    arguments = [f"'{caller}'", organization, since, until, *anything, "true", "0", str(TAKE)]
    return await session.explain(QUERIES.list_events, LIST, *arguments, str(max_scan))


def pages(nodes: list[Node]) -> int:
    """How many pages of 8 KB a statement looked at; entries of indexes passed over count here."""
    return int(nodes[0].said["Shared Hit Blocks"] + nodes[0].said["Shared Read Blocks"])


@pytest.mark.parametrize("settings", [READS], ids=["service"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("max_scan", [100, ALL], ids=["bounded", "unbounded"])
async def test_a_list_reads_its_window(
    session: Session, role: str, window: str, max_scan: int
) -> None:
    """The newest of it, up to the bound, of the caller's organization alone, however large it is.

    Read state and memberships are looked up for those.
    """
    for organization, size in SIZES.items():
        caller = f"{organization}-{ROLES[role]}"
        nodes = await explain_list(session, caller, window, max_scan)
        check_window(nodes, min(size * WINDOWS[window][2], max_scan) + 2)


def check_window(nodes: list[Node], looked: float, beside: int = 0) -> None:
    """Check that who looks at so many events reads no more, and so many pages `beside`."""
    for table, rows in (
        ("users", 1 + TAKE),
        ("workspace_user", looked),
        ("system_event_log", looked + TAKE),
        ("system_event_read", looked),
    ):
        assert sum(node.read for node in nodes if node.relation == table) <= rows, table
    # An event, and at most three pages each to its read state and to a membership
    assert pages(nodes) <= 7 * looked + 12 * TAKE + beside


@pytest.mark.parametrize("settings", [READS], ids=["service"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bound", [100, 2000])
async def test_a_count_reads_up_to_its_bound(session: Session, role: str, bound: int) -> None:
    """As a list does, and no details."""
    for organization, size in SIZES.items():
        caller = f"{organization}-{ROLES[role]}"
        window = ("null", "now() - interval '29 days'", *["null"] * 6)
        types = LIST.replace("bool, bigint, bigint, ", "")
        nodes = await session.explain(
            QUERIES.count_unread, types, f"'{caller}'", *window, str(bound)
        )
        check_window(nodes, min(size * 29 / 30, bound) + 2)


@pytest.mark.parametrize("settings", [READS], ids=["service"])
@pytest.mark.parametrize("organization", SIZES)
async def test_a_list_that_is_told_the_organization_reads_no_other(
    session: Session, organization: str
) -> None:
    """Where statistics do not know it yet, it may read more of that one than the window."""
    nodes = await explain_list(session, f"{organization}-3", given=True)
    assert any("system_event_log_" in node.said.get("Index Name", "") for node in nodes)
    for node in nodes:
        if node.relation in BIG:
            assert "organization_id = " in node.condition
        if node.relation == "workspace_user":
            assert "user_id = " in node.condition


@pytest.mark.parametrize("settings", [{**READS, **EAGER}], ids=["eager"])
async def test_a_list_is_not_read_in_parallel(session: Session) -> None:
    """Processes beside it would collect the whole window before the bound (on PostgreSQL 15)."""
    nodes = await explain_list(session, "large-1", "29 days", 100)
    assert not [node for node in nodes if "Gather" in node.said["Node Type"]]


@pytest.mark.parametrize("settings", [READS], ids=["service"])
async def test_a_list_costs_the_same_after_a_long_history(session: Session) -> None:
    """58,000 older events and 30,000 of them read cost at most a page or two more per event."""
    costs = [pages(await explain_list(session, caller)) for caller in ("large-1", "new-1")]
    assert costs[0] <= costs[1] + 2 * SIZES["large"] / 30


PAGE = LIST.replace("bool, bigint, bigint", "bool, interval, bigint, bigint")
MARK_ALL = PAGE.replace("bool, interval, bigint", "interval, bigint, text")
BOUND = 200  # events that a page or a chunk looks at
DEPTHS = {  # a place in the list: time and id
    "newest": ("null", "0"),
    "15 days deep": ("now() - interval '15 days' - timestamptz 'epoch'", "7"),
    "29 days deep": ("now() - interval '29 days' - timestamptz 'epoch'", "7"),
}
EVER = ("now() - interval '40 days'", "null", *["null"] * 5)  # a window without other filters


@pytest.mark.parametrize("settings", [READS], ids=["service"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("only_unread", ["true", "false"])
async def test_a_page_reads_what_it_shows_at_any_depth(
    session: Session, depth: str, only_unread: str
) -> None:
    """What the owner sees is found at once; for others so many events are looked at."""
    for organization in SIZES:
        for role in ROLES.values():
            place = (only_unread, *DEPTHS[depth], str(TAKE), str(BOUND))
            caller = (f"'{organization}-{role}'", "null")
            nodes = await session.explain(QUERIES.page_events, PAGE, *caller, *EVER, *place)
            finds_all = role == ROLES["owner"] and (only_unread == "false" or depth == "newest")
            check_window(nodes, TAKE if finds_all else BOUND)


@pytest.mark.parametrize("settings", [{**READS, **EAGER}], ids=["eager"])
async def test_a_page_is_not_read_in_parallel(session: Session) -> None:
    """As a list."""
    place = ("true", *DEPTHS["29 days deep"], str(TAKE), str(BOUND))
    nodes = await session.explain(QUERIES.page_events, PAGE, "'large-1'", "null", *EVER, *place)
    assert not [node for node in nodes if "Gather" in node.said["Node Type"]]
    check_window(nodes, BOUND)


@pytest.mark.parametrize("settings", [SERVICE], ids=["service"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("chunk", [20, BOUND])
async def test_a_chunk_reads_what_it_looks_at(session: Session, depth: str, chunk: int) -> None:
    """So many unread events, or so many looked at; memberships and read state by whole keys."""
    for organization in SIZES:
        for role in ROLES.values():
            place = (*DEPTHS[depth], "null", str(chunk), str(BOUND))
            caller = (f"'{organization}-{role}'", "null")
            nodes = await session.explain(QUERIES.mark_all, MARK_ALL, *caller, *EVER, *place)
            finds_all = role == ROLES["owner"] and depth == "newest"
            # A row goes into the table and its index: some five pages each
            check_window(nodes, chunk if finds_all else BOUND, beside=8 * chunk)


@pytest.mark.parametrize("settings", [SERVICE], ids=["service"])
async def test_a_place_is_found_by_its_key(session: Session) -> None:
    """One event, however large its organization is; none where there is none."""
    for organization, size in SIZES.items():
        for event in (size // 2, size + 1, 2**63 - 1):
            arguments = (f"'{organization}-2'", "null", str(event))
            nodes = await session.explain(QUERIES.place, "text, text, bigint", *arguments)
            for node in nodes:
                if node.relation in BIG:
                    assert node.read <= 1
                    assert node.said["Index Name"] == "system_event_log_pkey"
            assert pages(nodes) <= 10


@pytest.mark.parametrize("statement", ["list", "page", "mark_all"])
async def test_a_plan_for_empty_tables_holds_when_they_are_full(
    cluster: Cluster, statement: str
) -> None:
    """It is kept until statistics are made, however much comes in."""
    query, types, arguments, settings, looked = {
        "list": (QUERIES.list_events, LIST, f"true, 0, {TAKE}, {ALL}", READS, 2002),
        "page": (QUERIES.page_events, PAGE, f"true, null, 0, {TAKE}, {BOUND}", READS, TAKE),
        "mark_all": (QUERIES.mark_all, MARK_ALL, f"null, 0, null, 20, {BOUND}", SERVICE, 20),
    }[statement]
    with new_database(cluster, "plans_grown") as url:
        psql(url, QUIET, "truncate users, workspace_user, system_event_log", "vacuum analyze")
        connection = await connect(url, server_settings=settings)
        await connection.execute(f"prepare explained ({types}) as {query}")
        statement = f"execute explained ('large-1'{', null' * 8}, {arguments})"
        for _ in range(8):
            await connection.execute(statement)
        psql(url, LARGE, BESIDE)
        plan = await connection.fetchval(f"explain (analyze, buffers, format json) {statement}")
        check_window(list(Node(json.loads(plan)[0]["Plan"])), looked, beside=8 * TAKE)
        await connection.close()
