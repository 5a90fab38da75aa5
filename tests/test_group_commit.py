"""Group commit: alone, with a statement that the test controls; then over HTTP and PostgreSQL."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from service.config import Commit
from service.errors import BrokenStatement, InvalidToken, Unavailable
from service.group_commit import GroupCommit
from tests.conftest import Database, Start, bearer

Client = TestClient[Any, Any]
Outcome = Mapping[str, str | None]

EVENTS = 20  # ids 1..20 exist in acme
LARGE = range(1, 10_001)


@dataclass(eq=False)
class Run:
    """One statement in flight; the test decides how it ends."""

    callers: Sequence[str]
    owners: Sequence[str]
    ids: Sequence[int]
    deadline: float
    end: asyncio.Future[Outcome] = field(default_factory=asyncio.Future)

    def commit(self) -> None:
        """Every caller exists, in an organization named after the caller."""
        self.end.set_result({caller: f"org of {caller}" for caller in self.callers})

    def requests(self) -> list[tuple[str, int]]:
        """Who came with how many ids, in the order of the statement."""
        count = Counter(self.owners)
        return [(caller, count[caller]) for caller in self.callers]


class Harness:
    """A group commit on a statement that waits until the test ends it."""

    def __init__(self, max_queued_ids: int = 1_000_000, **limits: int) -> None:
        """Limits as in [commit]."""
        self.runs: asyncio.Queue[Run] = asyncio.Queue()
        self.commit = GroupCommit(self._statement, Commit(**limits), max_queued_ids)

    async def _statement(
        self, callers: Sequence[str], owners: Sequence[str], ids: Sequence[int], deadline: float
    ) -> Outcome:
        run = Run(callers, owners, ids, deadline)
        self.runs.put_nowait(run)
        return await run.end

    async def submit(
        self, user_id: str, ids: Sequence[int] = (1,), seconds: float = 60
    ) -> asyncio.Task[str | None]:
        """Start a request, and let it reach the queue."""
        deadline = asyncio.get_running_loop().time() + seconds
        task = asyncio.create_task(self.commit.submit(user_id, ids, deadline))
        await asyncio.sleep(0)
        return task

    async def submit_all(self, sizes: Sequence[int]) -> list[asyncio.Task[str | None]]:
        """Start a request of each size: of caller "0", "1", ..."""
        return [await self.submit(str(n), range(1, size + 1)) for n, size in enumerate(sizes)]


async def test_a_lone_request_goes_out_at_once() -> None:
    """With nothing in flight a request has a statement to itself, and nothing waits for a timer."""
    harness = Harness()
    answer = await harness.submit("alice", [4, 6])
    run = await harness.runs.get()
    assert (run.callers, run.owners, run.ids) == (["alice"], ["alice", "alice"], [4, 6])
    run.commit()
    assert await answer == "org of alice"


async def test_requests_that_arrive_meanwhile_share_the_next_statement() -> None:
    """One statement is in flight; all that came after it travel in the next, in their order."""
    harness = Harness()
    first = await harness.submit("alice", [1])
    in_flight = await harness.runs.get()
    later = [await harness.submit(f"user {n}", [n, 7]) for n in range(100)]
    assert harness.runs.empty()

    in_flight.commit()
    assert await first == "org of alice"
    run = await harness.runs.get()
    assert run.callers == [f"user {n}" for n in range(100)]
    assert list(zip(run.owners, run.ids, strict=True)) == [
        (f"user {n}", event_id) for n in range(100) for event_id in (n, 7)
    ]
    assert not any(answer.done() for answer in later)
    run.commit()
    assert await asyncio.gather(*later) == [f"org of user {n}" for n in range(100)]
    await harness.commit.drain()
    assert harness.runs.empty()


async def test_a_request_that_arrives_as_a_statement_ends_is_not_forgotten() -> None:
    """In the very turn of the loop in which nothing seems to be left to do."""
    harness = Harness()
    for n in range(3):
        answer = await harness.submit(f"user {n}")
        async with asyncio.timeout(5):
            (await harness.runs.get()).commit()
        again = await harness.submit(f"again {n}")
        async with asyncio.timeout(5):
            (await harness.runs.get()).commit()
        assert [await answer, await again] == [f"org of user {n}", f"org of again {n}"]


async def test_as_many_statements_are_in_flight_as_configured() -> None:
    """in_flight statements run at a time, never one more."""
    harness = Harness(in_flight=2, max_requests=1)
    answers = await harness.submit_all([1, 1, 1])
    runs = [await harness.runs.get(), await harness.runs.get()]
    assert harness.runs.empty()
    runs[1].commit()
    runs += [await harness.runs.get()]
    runs[0].commit()
    runs[2].commit()
    assert await asyncio.gather(*answers) == ["org of 0", "org of 1", "org of 2"]


async def test_each_caller_has_its_own_outcome() -> None:
    """An organization, none, or no such user: each from the same statement."""
    harness = Harness()
    answers = [await harness.submit(user) for user in ("alice", "nobody", "ghost", "alice")]
    run = await harness.runs.get()
    while run.callers != ["nobody", "ghost", "alice"]:
        run.commit()
        run = await harness.runs.get()
    run.end.set_result({"alice": "acme", "nobody": None})
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert outcomes[1] is None
    assert isinstance(outcomes[2], InvalidToken)
    assert outcomes[3] == "acme"


@pytest.mark.parametrize(
    ("limits", "sizes", "statements"),
    [
        ({"max_requests": 2}, [1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        ({"max_requests": 1}, [1, 1], [[1], [1]]),
        ({"max_ids": 5}, [2, 2, 2, 2], [[2, 2], [2, 2]]),
        ({"max_ids": 5}, [7, 1, 1], [[7], [1, 1]]),
        ({"max_ids": 300}, [150, 150, 150], [[150, 150], [150]]),
        # Two lanes: a large request neither holds up the small ones behind it, nor waits for them.
        ({"max_ids": 1000}, [1000, 1000, 1, 1], [[1, 1, 1000], [1000]]),
        ({"max_requests": 2}, [1, 1, 1, 1, 1000], [[1, 1, 1000], [1, 1]]),
        ({"max_requests": 1}, [1, 1, 500, 500], [[1, 500], [1, 500]]),
    ],
)
async def test_a_statement_is_bounded_and_fair(
    limits: dict[str, int], sizes: list[int], statements: list[list[int]]
) -> None:
    """Bounded in requests and in ids; small requests first, and always a large one behind them."""
    harness = Harness(**limits)
    await harness.submit("first")
    in_flight = await harness.runs.get()
    answers = await harness.submit_all(sizes)
    in_flight.commit()
    for statement in statements:
        run = await harness.runs.get()
        assert [size for _, size in run.requests()] == statement
        run.commit()
    await asyncio.gather(*answers)
    assert harness.runs.empty()


@pytest.mark.parametrize(
    ("harness", "size"),
    [(Harness(max_queue=2), 1), (Harness(max_queued_ids=200), 100)],
    ids=["requests", "ids"],
)
async def test_a_full_queue_sheds(harness: Harness, size: int) -> None:
    """Beyond the queue's bounds a request is refused at once, and no statement carries it."""
    await harness.submit("first")
    in_flight = await harness.runs.get()
    queued = [await harness.submit("queued", range(size)) for _ in range(2)]
    shed = await harness.submit("shed", range(size))
    assert shed.done()
    with pytest.raises(Unavailable):
        await shed
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["queued", "queued"]
    again = await harness.submit("again", range(size))  # there is room now
    run.commit()
    (await harness.runs.get()).commit()
    assert [*await asyncio.gather(*queued), await again] == ["org of queued"] * 2 + ["org of again"]


async def test_each_request_waits_until_its_own_deadline() -> None:
    """One gives up and its neighbour does not; the statement is told the later deadline."""
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    hasty, patient = await harness.submit("hasty", seconds=0.05), await harness.submit("patient")
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["hasty", "patient"]
    assert run.deadline > asyncio.get_running_loop().time() + 10
    with pytest.raises(Unavailable):
        await hasty
    assert not patient.done()
    run.commit()
    assert await patient == "org of patient"


async def test_deadlines_are_not_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests wait, each with a deadline of its own, a few looks find them all."""
    looks: list[None] = []
    expire = GroupCommit._expire  # noqa: SLF001

    def counted(commit: GroupCommit) -> None:
        looks.append(None)
        expire(commit)

    monkeypatch.setattr(GroupCommit, "_expire", counted)
    harness = Harness()
    answers = [await harness.submit(str(n), seconds=n / 1000) for n in range(200)]
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert len(looks) < 20
    (await harness.runs.get()).commit()
    await harness.commit.drain()


async def test_a_request_that_gave_up_in_the_queue_is_not_run() -> None:
    """What nobody waits for any more costs the database nothing."""
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    hasty, patient = await harness.submit("hasty", seconds=0.01), await harness.submit("patient")
    with pytest.raises(Unavailable):
        await hasty
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["patient"]
    run.commit()
    await patient


async def test_a_cancelled_caller_leaves_the_batch_unharmed() -> None:
    """Its ids are in the statement already; its neighbours get their answers."""
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    gone, stays = await harness.submit("gone", [5]), await harness.submit("stays", [6])
    in_flight.commit()
    run = await harness.runs.get()
    gone.cancel()
    await asyncio.wait([gone])
    run.commit()
    assert (run.callers, run.ids) == (["gone", "stays"], [5, 6])
    assert await stays == "org of stays"
    assert gone.cancelled()


@pytest.mark.parametrize("poisoned", [{0}, {15}, {7, 8}, {0, 5, 15}, set(range(16))])
async def test_a_poisoned_member_fails_alone(poisoned: set[int]) -> None:
    """A statement that the database refuses is halved until whoever is at fault stands alone."""
    runs: list[Sequence[str]] = []

    async def statement(
        callers: Sequence[str], _: Sequence[str], ids: Sequence[int], __: float
    ) -> Outcome:
        runs.append(callers)
        if poisoned & set(ids):
            raise ValueError(callers)
        return dict.fromkeys(callers, "acme")

    commit = GroupCommit(statement, Commit(), 1000)
    deadline = asyncio.get_running_loop().time() + 60
    outcomes = await asyncio.gather(
        *(commit.submit(f"user {n}", [n], deadline) for n in range(16)), return_exceptions=True
    )
    for n, outcome in enumerate(outcomes):
        if n in poisoned:
            assert isinstance(outcome, ValueError)
            assert outcome.args == ([f"user {n}"],)
        else:
            assert outcome == "acme"
    assert len(runs) <= 1 + len(poisoned) * 2 * 4  # halved four times, two halves each


@pytest.mark.parametrize("kind", [Unavailable, BrokenStatement])
async def test_what_is_nobodys_fault_reaches_all(kind: type[Exception]) -> None:
    """A database that is away, a statement that fails whoever asks: no halving, one outcome."""
    harness = Harness()
    answers = [await harness.submit(f"user {n}") for n in range(3)]
    (await harness.runs.get()).end.set_exception(kind("why"))
    (await harness.runs.get()).end.set_exception(kind("why"))
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(kind, "why")] * 3
    assert len(set(map(id, outcomes))) == 3  # one each: raising an exception changes it
    assert harness.runs.empty()


# Over HTTP. The database holds the first statement while others queue behind it; a trigger counts.

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

    async def counted(commit: GroupCommit, *arguments: Any) -> str | None:  # noqa: ANN401
        semaphore.release()
        return await submit(commit, *arguments)

    async def wait(number: int) -> None:
        async with asyncio.timeout(30):
            for _ in range(number):
                await semaphore.acquire()

    monkeypatch.setattr(GroupCommit, "submit", counted)
    return wait


@contextlib.asynccontextmanager
async def held(database: Database) -> AsyncIterator[None]:
    """Let every statement that writes wait, while the context lasts."""
    async with database.owner.transaction():
        await database.owner.execute("lock table system_event_read in exclusive mode")
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


async def test_concurrent_callers_are_merged(
    client: Client, database: Database, arrived: Arrived
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


async def test_callers_of_one_statement_have_their_own_answers(
    client: Client, database: Database, arrived: Arrived
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
    start: Start, database: Database
) -> None:
    """Statements that insert the same rows wait for each other in one order, never in a circle."""
    await database.owner.execute(
        """
        insert into system_event_log (organization_id, id, context, event, context_id, user_id)
        select 'acme', id, 0, 0, 'thing', 'bob' from generate_series(101, 10_100) id
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
    while await database.owner.fetchval(f"select count(*) from pg_stat_activity {mine}") > 1:  # noqa: S608
        pass
    assert await database.owner.fetchval(f"select deadlocks from pg_stat_database {mine}") == 0  # noqa: S608
    assert len(await database.read_rows()) == 10_000


async def test_overlapping_marks_of_both_kinds_never_fail(start: Start, database: Database) -> None:
    """Several statements of both kinds at a time, on the same rows in any order: 200 each."""
    # A deadlock of two deletes is resolved by PostgreSQL, after this time, and retried.
    name = await database.owner.fetchval("select current_database()")
    await database.owner.execute(f"alter database {name} set deadlock_timeout = '5ms'")
    client = await start(COMMIT_IN_FLIGHT="4", COMMIT_MAX_REQUESTS="2")
    draw = random.Random(1)  # noqa: S311
    ids = list(range(1, EVENTS + 1))
    requests = [
        send(client, "alice", {"ids": draw.sample(ids, EVENTS)}, method)
        for _ in range(100)
        for method in ("POST", "DELETE")
    ]
    assert set(await asyncio.gather(*requests)) == {200}
    assert await send(client, "alice", {"ids": ids}) == 200
    assert len(await database.read_rows()) == EVENTS


async def test_a_user_whose_data_is_refused_fails_alone(
    client: Client, database: Database, arrived: Arrived
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
    client: Client, database: Database, arrived: Arrived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 for all who asked, from one statement; and 200 again once the table is back."""
    rename = "alter table {} rename to {}"
    runs: list[object] = []
    fetch = asyncpg.Connection.fetch

    async def counted(connection: Any, query: str, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        if "insert into system_event_read" in query:
            runs.append(arguments)
        return await fetch(connection, query, *arguments, **more)

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    async with held(database):
        answers = [sending(client, "alice", {"id": 1})]
        await arrived(1)
        answers += [sending(client, "alice", {"id": event_id}) for event_id in range(2, 10)]
        await arrived(8)
        await database.owner.execute(rename.format("system_event_read", "gone"))
    assert set(await asyncio.gather(*answers)) == {500}
    assert len(runs) == 2
    await database.owner.execute(rename.format("gone", "system_event_read"))
    assert await send(client, "alice", {"id": 1}) == 200


async def test_a_full_queue_answers_503(start: Start, database: Database, arrived: Arrived) -> None:
    """At once, while the others wait, with Retry-After; and nothing of it is written."""
    client = await start(COMMIT_MAX_QUEUE="2")
    async with held(database):
        answers = [sending(client, "alice", {"id": 1})]
        await arrived(1)
        answers += [sending(client, "alice", {"id": event_id}) for event_id in (2, 3)]
        await arrived(2)
        async with client.post("/systemevent/read", json={"id": 4}, headers=bearer()) as shed:
            assert (shed.status, list(await shed.json())) == (503, ["error"])
            assert int(shed.headers["Retry-After"]) > 0
    assert await asyncio.gather(*answers) == [200, 200, 200]
    assert await database.read_rows() == {("acme", "alice", event_id) for event_id in (1, 2, 3)}


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_statement_that_waits_past_the_deadline_answers_503(
    start: Start, database: Database, method: str
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
    client: Client, database: Database, arrived: Arrived
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
