"""Mark-all in chunks: each is a commit, and what others do beside it is not held up.

A trigger counts them, or holds them up.
"""

import asyncio
import random
from typing import Any

import pytest

from service.endpoints import mark_all
from tests.conftest import Sandbox, Start, bearer
from tests.http.test_list import SEEN, listed, mark
from tests.http.test_mark_all import PATH, mark_everything, read_by
from tests.support.shared import refused, server_of

COUNTED = """
create table chunk (number serial, rows int);
create function count_chunk() returns trigger language plpgsql security definer as $$
begin
  insert into chunk (rows) select count(*) from changed;
  return null;
end $$;
create trigger count_chunk after insert on system_event_read
  referencing new table as changed for each statement execute function count_chunk();
"""
# What alice marks waits until the gate is gone; not for a lock, which would be given up.
HELD = """
create table gate ();
insert into gate default values;
create function hold() returns trigger language plpgsql security definer as $$
begin
  while exists (select from gate) and exists (select from changed where user_id = 'alice') loop
    perform pg_sleep(0.01);
  end loop;
  return null;
end $$;
create trigger hold after insert on system_event_read
  referencing new table as changed for each statement execute function hold();
"""
HELD_NOW = """
select count(*) from pg_stat_activity
where datname = current_database() and state = 'active' and query like '-- Marks as read what%'
"""


@pytest.fixture
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark_all, "CHUNK", 3)


async def chunks(database: Sandbox) -> list[int]:
    """How many rows each statement has inserted."""
    return [row["rows"] for row in await database.owner.fetch("table chunk order by number")]


@pytest.mark.single("triggers")
@pytest.mark.usefixtures("chunks_of_three")
async def test_each_chunk_is_a_commit(start: Start, database: Sandbox) -> None:
    """Of so many events; the last one finds that nothing is left."""
    client = await start()
    await mark(client, "owner", *range(4, 9))
    await database.owner.execute(COUNTED)
    assert await mark_everything(client) == 200
    assert await chunks(database) == [3, 3, 3, 3, 3, 0]


@pytest.mark.single("triggers")
@pytest.mark.usefixtures("chunks_of_three")
async def test_what_is_read_is_passed_over_at_once(start: Start, database: Sandbox) -> None:
    """So a repeat goes on where the first one stopped: chunks are of what is unread."""
    client = await start()
    await mark(client, "owner", *range(1, 20))
    await database.owner.execute(COUNTED)
    assert await mark_everything(client) == 200
    assert await chunks(database) == [1]


@pytest.mark.single("triggers")
@pytest.mark.late
@pytest.mark.usefixtures("chunks_of_three")
async def test_past_the_deadline_what_is_done_stays_and_a_repeat_goes_on(
    start: Start, database: Sandbox
) -> None:
    """503 says so; the newest come first."""
    client = await start(LIMITS_DEADLINE="1", LIMITS_BODY_DEADLINE="1")
    await database.owner.execute(
        "create function slow() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(0.25); return null; end $$; "
        "create trigger slow after insert on system_event_read "
        "for each statement execute function slow()"
    )
    done: set[int] = set()
    refusals = 0
    for _ in range(20):
        answer = await client.post(PATH, headers=bearer("owner"))
        now = await read_by(database, "owner")
        assert now >= done
        assert now == set(range(1, len(now) + 1))
        done = now
        if answer.status == 200:
            break
        assert answer.status == 503
        refusals += 1
        assert "what is done stays" in await refused(answer)
        assert answer.headers["Retry-After"]
    assert refusals
    assert done == set(range(1, 21))


# An event commits late that was of the last 24 hours when the first chunk began, and is no more.
EDGE = """
create function edge() returns trigger language plpgsql security definer as $$
begin
  insert into system_event_log
  values ('acme', 999, clock_timestamp() - interval '24 hours', 0, 0, '', 'bob')
  on conflict do nothing;
  return null;
end $$;
create trigger edge after insert on system_event_read
  for each row execute function edge();
"""


@pytest.mark.single("triggers")
@pytest.mark.usefixtures("chunks_of_three")
async def test_the_first_chunk_fixes_the_window(start: Start, database: Sandbox) -> None:
    """However long the others take."""
    client = await start()
    await database.owner.execute(EDGE)
    assert await mark_everything(client) == 200
    assert await read_by(database, "owner") == {*range(1, 21), 999}


# Whoever marks moves to globex, as its owner, in the same moment.
MOVE = """
create function move() returns trigger language plpgsql security definer as $$
begin
  update users set organization_id = 'globex', org_role = 255 where id = 'alice';
  return null;
end $$;
create trigger move after insert on system_event_read
  for each row execute function move();
"""


@pytest.mark.single("triggers")
@pytest.mark.parametrize("body", [{}, {"upTo": 3}])
@pytest.mark.usefixtures("chunks_of_three")
async def test_who_moves_meanwhile_marks_nothing_there(
    start: Start, database: Sandbox, body: dict[str, int]
) -> None:
    """A place in the list is one in the organization that they have left."""
    client = await start()
    await database.owner.execute(MOVE)
    assert await mark_everything(client, "alice", **body) == 200
    assert await database.read_rows() == {("acme", "alice", n) for n in (3, 4, 6)}


@pytest.mark.single("triggers")
@pytest.mark.usefixtures("chunks_of_three")
async def test_for_a_client_that_hangs_up_no_further_chunk_begins(
    start: Start, database: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed stays; the log has a line, and no fault of ours."""
    lines: list[Any] = []
    monkeypatch.setattr("service.logs.write", lines.extend)
    client = await start(LOGGING_LEVEL="info")
    await database.owner.execute(HELD)
    asking = asyncio.create_task(mark_everything(client, "alice"))
    while not await database.owner.fetchval(HELD_NOW):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    while any(connection.transport for connection in server_of(client).connections):
        await asyncio.sleep(0)
    await database.owner.execute("delete from gate")
    while not lines:
        await asyncio.sleep(0)
    assert [(line.status, line.cause) for line in lines] == [(400, "hung up")]
    assert len(await read_by(database, "alice")) == 3


@pytest.mark.single("triggers")
async def test_after_a_503_nothing_happens(start: Start, database: Sandbox) -> None:
    """The chunk in flight was called off on the server, and no other begins."""
    client = await start(LIMITS_DEADLINE="1", LIMITS_BODY_DEADLINE="1")
    await database.owner.execute(HELD)
    assert await mark_everything(client, "alice") == 503
    assert await database.owner.fetchval(HELD_NOW) == 0
    await database.owner.execute("delete from gate")
    assert await mark_everything(client, "bob") == 200
    assert await read_by(database, "alice") == set()


@pytest.mark.single("triggers")
async def test_mark_alls_of_one_caller_leave_a_turn_to_others(
    start: Start, database: Sandbox
) -> None:
    """One at a time, while another caller's is done; and so are marks and lists."""
    client = await start(LIMITS_DEADLINE="30", DATABASE_STATEMENT_TIMEOUT="30")
    await database.owner.execute(HELD)
    marking = [asyncio.create_task(mark_everything(client, "alice")) for _ in range(10)]
    while not await database.owner.fetchval(HELD_NOW):
        await asyncio.sleep(0)
    assert await mark_everything(client, "bob") == 200
    await mark(client, "owner", 1)
    assert await listed(client, "bob", showUnread=True) == []
    assert await database.owner.fetchval(HELD_NOW) == 1
    assert not any(task.done() for task in marking)
    await database.owner.execute("delete from gate")
    assert set(await asyncio.gather(*marking)) == {200}


async def test_a_locked_row_holds_up_nobody_but_its_owner(start: Start, database: Sandbox) -> None:
    """Though more callers wait for theirs than there are connections."""
    client = await start(LIMITS_DEADLINE="30")
    waiting = ("alice", "admin", "owner")
    async with database.owner.transaction():
        for user in waiting:  # a row that may come into being
            await database.owner.execute(
                "insert into system_event_read values ('acme', $1, 12)", user
            )
        marking = [asyncio.create_task(mark_everything(client, user)) for user in waiting]
        for _ in range(5):
            assert await mark_everything(client, "bob") == 200
            assert await mark_everything(client, "gina") == 200
        assert not any(task.done() for task in marking)
    assert await asyncio.gather(*marking) == [200, 200, 200]
    for user in waiting:
        assert await read_by(database, user) == {event["id"] for event in SEEN[user]}


async def test_no_deadlock_with_marks_and_unmarks(start: Start, database: Sandbox) -> None:
    """All of one caller's rows, in every order, at once: each is answered 200."""
    client = await start(COMMIT_IN_FLIGHT="4", LIMITS_DEADLINE="60")
    await database.owner.execute(
        """
        insert into system_event_log (organization_id, id, context, event, context_id, user_id)
        select 'acme', id, 0, 0, 'thing', 'alice' from generate_series(101, 3100) id
        """
    )

    async def some(method: str) -> None:
        for _ in range(5):
            ids = random.sample(range(101, 3101), 300)
            await mark(client, "alice", *ids, method=method)

    async def everything() -> None:
        for _ in range(3):
            assert await mark_everything(client, "alice") == 200

    await asyncio.gather(*map(some, ["POST", "DELETE"] * 4), everything(), everything())
    assert await mark_everything(client, "alice") == 200
    assert await listed(client, "alice", showUnread=True) == []
