"""Pruning: what goes and what stays, in which steps, and what it does where others hold locks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from service import config
from service.database import prune as module
from service.database.prune import Progress, prune
from service.errors import ConfigError
from tests.conftest import Sandbox, psql

# The README: directly, and not through a pooler, which drops what keeps others safe.
pytestmark = pytest.mark.session

# Every third event of acme and globex goes; 1 to 5 are a year old. Two more organizations have no
# user and no event, and others between them have read rows, as after people have moved.
SOME = """
    insert into system_event_read (organization_id, user_id, event_id)
    select o, u, e
    from unnest(array['acme', 'globex']) o,
      unnest(array['alice', 'bob', 'gina']) u, generate_series(1, 20) e;
    insert into system_event_read (organization_id, user_id, event_id)
    select o, u, e
    from unnest(array['a', 'zeta']) o, unnest(array['alice', 'zoe']) u, generate_series(1, 5) e;
    insert into system_event_read (organization_id, user_id, event_id)
    select 'between' || n, 'bob', 1 from generate_series(1, 30) n;
    delete from system_event_log where id % 3 = 0;
    update system_event_log set "timestamp" = now() - interval '1 year' where id <= 5;
    update system_event_log set "timestamp" = '-infinity' where id = 10;
"""
GONE = 2 * 3 * 6 + 2 * 2 * 5 + 30
OLD = 2 * 3 * 5  # 1, 2, 4, 5 and 10
EXISTS = """
    select r.organization_id, r.user_id, r.event_id
    from system_event_read r
    join system_event_log e on e.organization_id = r.organization_id and e.id = r.event_id
"""


def of(database: Sandbox) -> config.Database:
    """Configuration as the service's role has it: pruning needs no other."""
    return config.Database(url=database.url)


async def run(database: Sandbox, **options: Any) -> Progress:
    """Prune; what was done."""
    progress = Progress()
    await prune(of(database), progress, **options)
    return progress


@pytest.fixture
async def some(database: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A database with such rows, looked at a few at a time."""
    monkeypatch.setattr(module, "LOOK", 7)
    monkeypatch.setattr(module, "LARGEST", 4)
    psql(database.owner_url, SOME)
    return database


async def test_rows_whose_event_is_gone_go(some: Sandbox) -> None:
    """In every organization, and no others; the second time there is nothing to do."""
    before = len(await some.read_rows())
    expected = {tuple(row) for row in await some.owner.fetch(EXISTS)}
    progress = await run(some)
    assert await some.read_rows() == expected
    assert (progress.found, progress.deleted) == ({"gone": GONE}, GONE)
    assert (progress.looked, progress.left) == (before, 0)
    again = await run(some)
    assert (again.found, again.deleted, again.looked) == ({}, 0, len(expected))


async def test_rows_whose_event_is_old_go_where_that_is_asked_for(some: Sandbox) -> None:
    """Together with those whose event is gone."""
    recent = f"{EXISTS} where e.\"timestamp\" > now() - interval '90 days'"
    expected = {tuple(row) for row in await some.owner.fetch(recent)}
    progress = await run(some, older_than=90)
    assert await some.read_rows() == expected
    assert progress.found == {"gone": GONE, "old": OLD}
    assert progress.deleted == GONE + OLD


async def test_the_rows_of_a_user_go_in_every_organization(some: Sandbox) -> None:
    """Those of the past included; nobody else's."""
    expected = {row for row in await some.read_rows() if row[1] != "alice"}
    progress = await run(some, user_id="alice")
    assert await some.read_rows() == expected
    assert progress.found == {"user": 2 * 20 + 2 * 5}
    assert (await run(some, user_id="who")).found == {}


@pytest.mark.parametrize("options", [{}, {"older_than": 90}, {"user_id": "bob"}])
async def test_a_dry_run_counts_and_removes_nothing(some: Sandbox, options: dict[str, Any]) -> None:
    """It may run where nothing can be written, too."""
    before = await some.read_rows()
    name = some.url.rpartition("/")[2]
    await some.owner.execute(f"alter database {name} set default_transaction_read_only = on")
    dry = await run(some, dry_run=True, **options)
    assert (await some.read_rows(), dry.deleted) == (before, 0)
    await some.owner.execute(f"alter database {name} reset default_transaction_read_only")
    assert (await run(some, **options)).found == dry.found


# Others hold locks, or are slow


@pytest.fixture
async def other(database: Sandbox) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Another session of the owner."""
    connection = await asyncpg.connect(database.owner_url)
    yield connection
    await connection.close()


LOCKED = "select from system_event_read where organization_id = 'zeta' for update"


async def test_a_locked_row_is_left_and_the_others_go(
    some: Sandbox, other: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted as left, and go the next time."""
    monkeypatch.setattr(module, "PAUSE", 0)
    async with other.transaction():
        await other.execute(LOCKED)
        progress = await run(some)
        assert (progress.left, progress.deleted) == (10, GONE - 10)
        assert {row for row in await some.read_rows() if row[0] not in ("acme", "globex")} == {
            ("zeta", user, event) for user in ("alice", "zoe") for event in range(1, 6)
        }
    assert (await run(some)).deleted == 10


async def test_a_row_that_was_locked_is_tried_again(
    some: Sandbox, other: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, when its lock may be gone."""
    monkeypatch.setattr(module, "LAST_TRIES", 10_000)
    monkeypatch.setattr(module, "PAUSE", 0)
    progress = Progress()
    async with other.transaction():
        await other.execute(LOCKED)
        pruning = asyncio.create_task(prune(of(some), progress))
        while progress.deleted < GONE - 10:
            await asyncio.sleep(0)
    await pruning
    assert (progress.left, progress.deleted) == (0, GONE)


async def test_too_many_locked_rows_end_it(
    some: Sandbox, other: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept in mind of them is bounded."""
    monkeypatch.setattr(module, "MAX_ASIDE", 9)
    async with other.transaction():
        await other.execute(LOCKED)
        with pytest.raises(ConfigError, match="more than 9 read rows are locked"):
            await run(some)


# A row takes 30 ms; and what each statement removed is noted.
SLOW = """
    create table steps (rows bigint);
    create function slow() returns trigger language plpgsql as $$
      begin perform pg_sleep(0.03); return old; end $$;
    create trigger slow before delete on system_event_read
      for each row execute function slow();
    create function note() returns trigger language plpgsql security definer as $$
      begin insert into steps select count(*) from gone; return null; end $$;
    create trigger note after delete on system_event_read
      referencing old table as gone for each statement execute function note();
"""


async def test_a_slow_disk_makes_the_steps_smaller(
    some: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no row stays locked for longer than a blink: three rows, at 30 ms in 100."""
    monkeypatch.setattr(module, "LARGEST", 500)
    monkeypatch.setattr(module, "LOOK", 500)
    psql(some.owner_url, SLOW)
    assert (await run(some, user_id="alice")).deleted == 50
    steps = [row["rows"] for row in await some.owner.fetch("table steps")]
    assert sum(steps) == 50
    assert max(steps) <= 3


# A log that is not there, or not to be seen


async def test_an_empty_log_is_not_believed(some: Sandbox) -> None:
    """A view that shows nothing must not cost all read state."""
    before = await some.read_rows()
    psql(some.owner_url, "truncate system_event_log")
    with pytest.raises(ConfigError, match="system_event_log has no event"):
        await run(some)
    assert await some.read_rows() == before


async def test_a_log_that_shows_a_part_is_not_believed(some: Sandbox) -> None:
    """Row security would make the rest look as if it were gone."""
    before = await some.read_rows()
    psql(
        some.owner_url,
        "alter table system_event_log enable row level security",
        "create policy p on system_event_log using (organization_id = 'acme')",
    )
    with pytest.raises(ConfigError, match="row-level security policy"):
        await run(some)
    assert await some.read_rows() == before


async def test_a_database_that_is_away_is_told(database: Sandbox) -> None:
    """In a line, with the key of the configuration."""
    with pytest.raises(ConfigError, match=r"^database\.url: "):
        await prune(config.Database(url="postgresql://127.0.0.1:1/x"), Progress())
