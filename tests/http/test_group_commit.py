"""Group commit over HTTP: what callers see of statements that they share.

The database holds the first statement while others queue behind it; a trigger counts.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from service.database.group_commit import GroupCommit, Row
from tests.conftest import ROLE, Sandbox, Start, bearer

Client = TestClient[Any, Any]
EVENTS = 20  # ids 1..20 exist in acme

COUNT_STATEMENTS = """
    create table statement (kind text, changed bigint, callers bigint);
    create function count_statement() returns trigger language plpgsql security definer as $$
    begin
      insert into statement
      select tg_op, count(*), count(distinct user_id) from changed having count(*) > 0;
      return null;
    end $$;
    create trigger count_insert after insert on system_event_read
      referencing new table as changed for each statement execute function count_statement();
    create trigger count_delete after delete on system_event_read
      referencing old table as changed for each statement execute function count_statement();
"""
REFUSE_BOB = """
    create function refuse() returns trigger language plpgsql as
      $$ begin raise exception 'this row is not wanted'; end $$;
    create trigger refuse before insert on system_event_read
      for each row when (new.user_id = 'bob') execute function refuse();
"""
Arrived = Callable[[int], Awaitable[None]]


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> Arrived:
    """Wait until so many more requests have joined a queue."""
    semaphore = asyncio.Semaphore(0)
    submit = GroupCommit.submit

    async def counted(commit: GroupCommit, *arguments: Any) -> Row | None:
        semaphore.release()
        return await submit(commit, *arguments)

    async def wait(number: int) -> None:
        async with asyncio.timeout(30):
            for _ in range(number):
                await semaphore.acquire()

    monkeypatch.setattr(GroupCommit, "submit", counted)
    return wait


@contextlib.asynccontextmanager
async def held(database: Sandbox, mode: str = "exclusive") -> AsyncIterator[None]:
    """Let every statement that writes wait, while the context lasts."""
    async with database.owner.transaction():
        await database.owner.execute(f"lock table system_event_read in {mode} mode")
        yield


async def send(client: Client, user: str, body: object, method: str = "POST") -> int:
    """Send a request; its status."""
    async with client.request(
        method, "/systemevent/read", json=body, headers=bearer(user)
    ) as answer:
        return answer.status


def sending(client: Client, user: str, body: object) -> asyncio.Task[int]:
    """Send one in the background."""
    return asyncio.create_task(send(client, user, body))


@pytest.mark.single("triggers")
async def test_concurrent_callers_are_merged(
    client: Client, database: Sandbox, arrived: Arrived
) -> None:
    """A hundred requests, one after the first is in flight, take two statements."""
    await database.owner.execute(COUNT_STATEMENTS)
    users = ("alice", "bob", "owner", "admin", "alice")
    async with held(database):
        answers = [sending(client, "alice", {"id": 1})]
        await arrived(1)
        answers += [sending(client, users[n % 5], {"id": 1 + n % EVENTS}) for n in range(1, 100)]
        await arrived(99)
    assert set(await asyncio.gather(*answers)) == {200}
    marks = {("acme", users[n % 5], 1 + n % EVENTS) for n in range(100)}
    assert await database.read_rows() == marks
    statements = await database.owner.fetch("select changed, callers from statement")
    assert [tuple(row) for row in statements] == [(1, 1), (len(marks) - 1, 4)]


@pytest.mark.single("triggers")
async def test_callers_of_one_statement_have_their_own_answers(
    client: Client, database: Sandbox, arrived: Arrived
) -> None:
    """200, 400, 401 and 403 come out of one statement, refusals in the order of the contract."""
    await database.owner.execute(COUNT_STATEMENTS)
    expected = [
        ("alice", {"ids": [2, 999, "x"]}, 200),
        ("gina", {"ids": [2, 21]}, 200),
        ("alice", {"ids": []}, 400),
        ("ghost", {"id": 3}, 401),
        ("ghost", {"id": 0}, 401),
        ("nobody", {"id": 3}, 403),
        ("nobody", [], 403),
        ("bob", {"id": 999}, 200),
    ]
    async with held(database):
        first = sending(client, "alice", {"id": 1})
        await arrived(1)
        answers = [sending(client, user, body) for user, body, _ in expected]
        await arrived(len(expected))
    assert await first == 200
    assert await asyncio.gather(*answers) == [status for *_, status in expected]
    assert await database.owner.fetchval("select count(*) from statement") == 2
    assert await database.read_rows() == {
        ("acme", "alice", 1),
        ("acme", "alice", 2),
        ("globex", "gina", 2),
        ("globex", "gina", 21),
    }


async def test_overlapping_marks_in_opposite_order_never_deadlock(
    start: Start, database: Sandbox
) -> None:
    """Statements that insert the same rows wait for each other in one order, never in a circle."""
    await database.owner.execute(
        """
        insert into system_event_log (organization_id, id, context, event, context_id, user_id)
        select 'acme', id, 0, 0, 'thing', 'bob' from generate_series(101, 10100) id
        """
    )
    client = await start(COMMIT_IN_FLIGHT="4", COMMIT_MAX_REQUESTS="1")
    requests = [
        send(client, "alice", {"ids": list(range(low, low + 500))[::step]})
        for low in range(101, 10_101, 500)
        for step in (1, -1, 1, -1)
    ]
    assert set(await asyncio.gather(*requests)) == {200}
    await client.close()  # a backend that ends hands in its counts
    mine = "where datname = current_database()"
    theirs = f"select count(*) from pg_stat_activity {mine} and usename = '{ROLE}'"
    while await database.owner.fetchval(theirs):
        pass
    assert await database.owner.fetchval(f"select deadlocks from pg_stat_database {mine}") == 0
    assert len(await database.read_rows()) == 10_000


async def test_overlapping_marks_of_both_kinds_never_fail(start: Start, database: Sandbox) -> None:
    """Several statements of both kinds at a time, on the same rows in any order: 200 each."""
    # A deadlock of two deletes is resolved by PostgreSQL, after this time, and retried.
    name = await database.owner.fetchval("select current_database()")
    await database.owner.execute(f"alter database {name} set deadlock_timeout = '5ms'")
    client = await start(COMMIT_IN_FLIGHT="4", COMMIT_MAX_REQUESTS="2")
    draw = random.Random(1)
    ids = list(range(1, EVENTS + 1))
    requests = [
        send(client, "alice", {"ids": draw.sample(ids, EVENTS)}, method)
        for _ in range(100)
        for method in ("POST", "DELETE")
    ]
    assert set(await asyncio.gather(*requests)) == {200}
    assert await send(client, "alice", {"ids": ids}) == 200
    assert len(await database.read_rows()) == EVENTS


@pytest.mark.single("triggers")
async def test_a_user_whose_data_is_refused_fails_alone(
    client: Client, database: Sandbox, arrived: Arrived
) -> None:
    """500 for that user, who learns nothing of the reason; 200 for those in the same statement."""
    await database.owner.execute(COUNT_STATEMENTS + REFUSE_BOB)
    users = ["owner", "bob", "admin", "gina"]
    async with held(database):
        first = sending(client, "alice", {"id": 1})
        await arrived(1)
        answers = [sending(client, user, {"id": 7}) for user in users]
        await arrived(len(users))
    assert await first == 200
    assert await asyncio.gather(*answers) == [200, 500, 200, 200]
    marked = {user for _, user, _ in await database.read_rows()}
    assert marked == {"alice", "owner", "admin", "gina"}


async def test_a_statement_that_is_broken_is_run_once(
    client: Client, database: Sandbox, arrived: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 for all who asked, from one statement; and 200 again once the table is back."""
    rename = "alter table {} rename to {}"
    runs: list[object] = []
    fetch = asyncpg.Connection.fetch

    async def counted(connection: Any, query: str, *arguments: Any, **more: Any) -> Any:
        try:
            return await fetch(connection, query, *arguments, **more)
        except asyncpg.UndefinedTableError:
            if arguments[0]:  # not the question whether the whole table is locked
                runs.append(arguments)
            raise

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    async with held(database, "access exclusive"):  # as the change of its name needs it
        answers = [sending(client, "alice", {"id": 1})]
        await arrived(1)
        answers += [sending(client, "alice", {"id": event_id}) for event_id in range(2, 10)]
        await arrived(8)
        await database.owner.execute(rename.format("system_event_read", "gone"))
    assert set(await asyncio.gather(*answers)) == {500}
    assert len(runs) == 2
    await database.owner.execute(rename.format("gone", "system_event_read"))
    assert await send(client, "alice", {"id": 1}) == 200


async def test_a_full_queue_answers_503(start: Start, database: Sandbox, arrived: Arrived) -> None:
    """At once, while the others wait, with Retry-After; and nothing of it is written."""
    client = await start(COMMIT_MAX_QUEUE="2")
    async with held(database):
        answers = [sending(client, "alice", {"id": 1})]
        await arrived(1)
        answers += [sending(client, user, {"id": 2}) for user in ("alice", "bob")]
        await arrived(2)
        async with client.post("/systemevent/read", json={"id": 4}, headers=bearer()) as shed:
            assert (shed.status, list(await shed.json())) == (503, ["error"])
            assert int(shed.headers["Retry-After"]) > 0
    assert await asyncio.gather(*answers) == [200, 200, 200]
    assert await database.read_rows() == {
        ("acme", "alice", 1),
        ("acme", "alice", 2),
        ("acme", "bob", 2),
    }


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_statement_that_waits_past_the_deadline_answers_503(
    start: Start, database: Sandbox, method: str
) -> None:
    """With Retry-After; and the service goes on when the database does."""
    client = await start(LIMITS_DEADLINE="0.3", LIMITS_BODY_DEADLINE="0.3")
    async with (
        held(database),
        client.request(method, "/systemevent/read", json={"id": 1}, headers=bearer()) as answer,
    ):
        assert (answer.status, list(await answer.json())) == (503, ["error"])
        assert int(answer.headers["Retry-After"]) > 0
    async with asyncio.timeout(30):
        while await send(client, "alice", {"id": 2}, method) != 200:
            pass


async def test_a_caller_who_hangs_up_does_not_lose_its_mark(
    client: Client, database: Sandbox, arrived: Arrived
) -> None:
    """Gone before its statement started: its mark is written all the same, as are the others'."""
    async with held(database):
        first = sending(client, "alice", {"id": 1})
        await arrived(1)
        async with aiohttp.ClientSession() as impatient:
            gone = asyncio.create_task(
                impatient.post(
                    client.make_url("/systemevent/read"), json={"id": 2}, headers=bearer()
                )
            )
            await arrived(1)
            gone.cancel()
            await asyncio.wait([gone])
        last = sending(client, "alice", {"id": 3})
        await arrived(1)
    assert [await first, await last] == [200, 200]
    assert await database.read_rows() == {("acme", "alice", event_id) for event_id in (1, 2, 3)}
