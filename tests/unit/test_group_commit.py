"""Group commit, with statements that the test ends as it likes."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import pytest

from service.config import Commit, Limits
from service.database import group_commit
from service.database.group_commit import LARGE_IN_FLIGHT, GroupCommit, Row, Statement
from service.errors import BrokenStatement, Unavailable
from service.observing import Observers, StatementRan
from tests.unit.test_turns import settle

LARGE = range(1, 1001)
UNKNOWN = "no such user"


@dataclass(eq=False)
class Run:
    """One statement in flight; the test decides how it ends."""

    callers: Sequence[str]
    owners: Sequence[str]
    ids: Sequence[int]
    seconds: float
    end: asyncio.Future[Sequence[Row]] = field(default_factory=asyncio.Future)

    def commit(self) -> None:
        """Every caller exists, in an organization named after the caller."""
        self.end.set_result(
            [{"user_id": user, "organization_id": f"org of {user}"} for user in self.callers]
        )

    def fail(self, error: Exception) -> None:
        """The database refuses."""
        self.end.set_exception(error)

    def requests(self) -> list[tuple[str, int]]:
        """Who came with how many ids, in the order of the statement."""
        count = Counter(self.owners)
        return [(caller, count[caller]) for caller in self.callers]


class Harness:
    """A group commit on statements that wait until the test ends them."""

    def __init__(self, per_request: int = 10_000, **limits: int) -> None:
        """Limits as in [commit]; and how many ids a request may have."""
        self.runs: asyncio.Queue[Run] = asyncio.Queue()
        self.apart: asyncio.Queue[Run] = asyncio.Queue()
        self.told: list[StatementRan] = []
        observers = Observers()
        observers.listen(StatementRan, self.told.append)
        self.commit = GroupCommit(
            "read",
            self._into(self.runs),
            self._into(self.apart),
            Commit(**limits),
            Limits(max_ids=per_request),
            observers,
        )

    @staticmethod
    def _into(queue: "asyncio.Queue[Run]") -> Statement:
        async def statement(
            callers: Sequence[str], owners: Sequence[str], ids: Sequence[int], seconds: float
        ) -> Sequence[Row]:
            run = Run(callers, owners, ids, seconds)
            queue.put_nowait(run)
            return await run.end

        return statement

    async def _ask(self, user_id: str, ids: Sequence[int], deadline: float) -> str | None:
        row = await self.commit.submit(user_id, ids, deadline)
        organization: str | None = row["organization_id"] if row else UNKNOWN
        return organization

    async def submit(
        self, user_id: str, ids: Sequence[int] = (1,), seconds: float = 60
    ) -> asyncio.Task[str | None]:
        """Start a request, and let it reach the queue."""
        deadline = asyncio.get_running_loop().time() + seconds
        task = asyncio.create_task(self._ask(user_id, ids, deadline))
        await asyncio.sleep(0)
        return task

    async def submit_all(self, sizes: Sequence[int]) -> list[asyncio.Task[str | None]]:
        """Start a request of each size: of caller "0", "1", ..."""
        return [await self.submit(str(n), range(1, size + 1)) for n, size in enumerate(sizes)]


def ticks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with each look at the deadlines."""
    looks: list[None] = []
    tick = GroupCommit._tick

    def counted(commit: GroupCommit) -> None:
        tick(commit)
        looks.append(None)

    monkeypatch.setattr(GroupCommit, "_tick", counted)
    return looks


async def looked(looks: list[None], after: float) -> None:
    """Wait until the deadlines were looked at when those of so many seconds had passed."""
    loop = asyncio.get_running_loop()
    passed = loop.time() + after
    while loop.time() <= passed:
        await asyncio.sleep(0)
    before = len(looks)
    while len(looks) == before:
        await asyncio.sleep(0)
    await settle()


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
    harness = Harness(in_flight=2, max_requests=1)
    answers = await harness.submit_all([1, 1, 1])
    runs = [await harness.runs.get(), await harness.runs.get()]
    assert harness.runs.empty()
    runs[1].commit()
    runs += [await harness.runs.get()]
    runs[0].commit()
    runs[2].commit()
    assert await asyncio.gather(*answers) == ["org of 0", "org of 1", "org of 2"]


async def test_each_statement_is_told_once() -> None:
    harness = Harness()
    await harness.submit("first", [1, 2], seconds=10)
    in_flight = await harness.runs.get()
    answers = [await harness.submit(user, [1], seconds=10) for user in ("alice", "bob")]
    in_flight.fail(OSError())
    while not all(answer.done() for answer in answers):
        (await harness.runs.get()).commit()
        await asyncio.sleep(0.005)
    said = [(it.kind, it.requests, it.ids, it.failure) for it in harness.told]
    assert said == [("read", 1, 2, "OSError"), ("read", 1, 2, None), ("read", 2, 2, None)]
    assert all(it.waited >= 0 and it.took >= 0 for it in harness.told)


async def test_each_caller_has_its_own_outcome() -> None:
    """An organization, none, or no such user: each from the same statement."""
    harness = Harness()
    answers = [await harness.submit(user) for user in ("alice", "nobody", "ghost", "alice")]
    run = await harness.runs.get()
    while run.callers != ["nobody", "ghost", "alice"]:
        run.commit()
        run = await harness.runs.get()
    organizations = {"alice": "acme", "nobody": None}
    rows = [{"user_id": user, "organization_id": at} for user, at in organizations.items()]
    run.end.set_result(rows)
    assert (await asyncio.gather(*answers))[1:] == [None, UNKNOWN, "acme"]


@pytest.mark.parametrize(
    ("limits", "sizes", "statements"),
    [
        ({"max_requests": 2}, [1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        ({"max_requests": 1}, [1, 1], [[1], [1]]),
        ({"max_ids": 5}, [2, 2, 2, 2], [[2, 2], [2, 2]]),
        ({"max_ids": 5}, [7, 1, 1], [[7, 1], [1]]),  # a quarter more, of small ones
        ({"max_ids": 5}, [7, 2, 2], [[7], [2, 2]]),
    ],
)
async def test_a_statement_is_bounded(
    limits: dict[str, int], sizes: list[int], statements: list[list[int]]
) -> None:
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
    ("limits", "size"),
    [({"max_queue": 2}, 1), ({"per_request": 2}, 100)],
    ids=["requests", "ids"],
)
async def test_a_full_queue_sheds(limits: dict[str, int], size: int) -> None:
    """Beyond the queue's bounds a request is refused at once, and no statement carries it."""
    harness = Harness(**limits)
    await harness.submit("first")
    in_flight = await harness.runs.get()
    queued = [await harness.submit(f"queued {n}", range(size)) for n in range(2)]
    shed = await harness.submit("shed", range(size))
    assert shed.done()
    with pytest.raises(Unavailable):
        await shed
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["queued 0", "queued 1"]
    again = await harness.submit("again", range(size))  # there is room now
    run.commit()
    (await harness.runs.get()).commit()
    assert [*await asyncio.gather(*queued), await again] == [
        "org of queued 0",
        "org of queued 1",
        "org of again",
    ]


async def test_a_statement_ends_by_the_first_deadline_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is late is answered when it has ended; the others go on without."""
    looks = ticks(monkeypatch)
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    hasty, patient = await harness.submit("hasty", seconds=0.1), await harness.submit("patient")
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["hasty", "patient"]
    assert run.seconds <= 0.1
    await looked(looks, after=0.1)  # the statement has not reported yet
    assert not hasty.done()
    run.fail(asyncpg.QueryCanceledError())
    with pytest.raises(Unavailable):
        await hasty
    run = await harness.runs.get()
    assert run.callers == ["patient"]
    run.commit()
    assert await patient == "org of patient"


async def test_a_commit_that_beats_the_deadline_by_nothing_is_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has committed is never answered with 503, though its report is late."""
    looks = ticks(monkeypatch)
    harness = Harness()
    answer = await harness.submit("alice", seconds=0.05)
    run = await harness.runs.get()
    await looked(looks, after=0.05)
    run.commit()
    assert await answer == "org of alice"


async def test_deadlines_are_not_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests wait, each with a deadline of its own, a few looks find them all."""
    looks = ticks(monkeypatch)
    harness = Harness()
    await harness.submit("first")
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
async def test_a_request_whose_data_is_refused_fails_alone(poisoned: set[int]) -> None:
    """The statement is halved until the refused request is alone."""
    harness = Harness()
    answers = [await harness.submit(f"user {n}", [n]) for n in range(16)]
    statements = 0
    while not all(answer.done() for answer in answers):
        run = await harness.runs.get()
        statements += 1
        if poisoned & set(run.ids):
            run.fail(ValueError(run.callers))
        else:
            run.commit()
        await asyncio.sleep(0.005)
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        if n in poisoned:
            assert isinstance(outcome, ValueError)
            assert outcome.args == ([f"user {n}"],)
        else:
            assert outcome == f"org of user {n}"
    assert statements <= 2 + len(poisoned) * 2 * 4  # halved four times, two halves each


async def test_a_statement_that_is_broken_fails_all_and_runs_once() -> None:
    harness = Harness()
    first = await harness.submit("first")
    answers = [await harness.submit(f"user {n}") for n in range(3)]
    (await harness.runs.get()).commit()
    (await harness.runs.get()).fail(asyncpg.UndefinedTableError("no such table"))
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BrokenStatement] * 3
    assert len(set(map(id, outcomes))) == 3  # one each: raising an exception changes it
    assert await first == "org of first"
    assert harness.runs.empty()


async def test_a_database_that_is_away_is_asked_again_for_those_who_wait() -> None:
    """No attempt begins for a request that has been answered."""
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    hasty, patient = await harness.submit("hasty", seconds=0.2), await harness.submit("patient")
    in_flight.fail(OSError())
    while (run := await harness.runs.get()).callers != ["hasty", "patient"]:
        run.commit()
    while "hasty" in run.callers:
        run.fail(asyncpg.ConnectionDoesNotExistError())
        run = await harness.runs.get()
    assert run.callers == ["patient"]
    with pytest.raises(Unavailable):
        await hasty
    run.commit()
    assert await patient == "org of patient"


async def test_a_pause_ends_with_the_last_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when the database is back does not wait for a pause of those who gave up."""
    monkeypatch.setattr(group_commit, "pauses", lambda: itertools.repeat(3600.0))
    harness = Harness()
    late = await harness.submit("alice", seconds=0.05)
    (await harness.runs.get()).fail(ConnectionResetError())
    with pytest.raises(Unavailable):
        await late
    answer = await harness.submit("bob")
    async with asyncio.timeout(30):
        (await harness.runs.get()).commit()
    assert await answer == "org of bob"


# A locked row: shared statements give up on it soon (55P03).

LOCKED = asyncpg.LockNotAvailableError


@pytest.mark.parametrize("error", [LOCKED, asyncpg.QueryCanceledError])
async def test_who_waits_for_a_locked_row_or_takes_too_long_goes_apart(
    error: type[Exception],
) -> None:
    """Nobody else waits; what the caller asks for next goes apart at once, others' does not."""
    harness = Harness()
    answers = {n: await harness.submit(f"user {n}", [n]) for n in range(8)}
    async with asyncio.timeout(20):
        while harness.apart.empty() or not harness.runs.empty():
            run = await harness.runs.get()
            if 5 in run.ids:
                run.fail(error())
            else:
                run.commit()
            await asyncio.sleep(0.005)
    others = [answer for n, answer in answers.items() if n != 5]
    assert all(answer.done() for answer in others)
    waiting = await harness.apart.get()
    assert (waiting.callers, waiting.ids) == (["user 5"], [5])
    assert waiting.seconds > 50  # until its own deadline

    again, other = await harness.submit("user 5", [6]), await harness.submit("user 6", [6])
    run = await harness.apart.get()
    assert (run.callers, run.ids) == (["user 5"], [6])
    run.commit()
    run = await harness.runs.get()
    assert run.callers == ["user 6"]
    run.commit()
    waiting.commit()
    assert [await again, await other] == ["org of user 5", "org of user 6"]
    assert await answers[5] == "org of user 5"


async def test_a_statement_that_ended_with_a_deadline_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has no time left is answered, the others go on together, and nobody goes apart."""
    looks = ticks(monkeypatch)
    harness = Harness()
    first = await harness.submit("first")
    in_flight = await harness.runs.get()
    alice, late, bob = [
        await harness.submit(user, seconds=seconds)
        for user, seconds in (("alice", 60), ("late", 0.5), ("bob", 60))
    ]
    in_flight.commit()
    run = await harness.runs.get()
    assert run.callers == ["alice", "late", "bob"]
    await looked(looks, after=0.5)  # its deadline, by which the server ends it
    run.fail(asyncpg.QueryCanceledError())
    async with asyncio.timeout(20):
        run = await harness.runs.get()
        assert run.callers == ["alice", "bob"]
        run.commit()
        with pytest.raises(Unavailable):
            await late
        again = await harness.submit("late")
        (await harness.runs.get()).commit()
        await asyncio.gather(first, alice, bob, again)
    assert harness.apart.empty()


async def test_what_was_queued_goes_apart_with_its_caller() -> None:
    """One wait tells: no statement of others carries any more of that caller."""
    harness = Harness()
    first = await harness.submit("alice", [1])
    locked = await harness.runs.get()
    queued = [await harness.submit("alice", [n]) for n in range(2, 5)]
    bob = await harness.submit("bob")
    locked.fail(LOCKED())
    (await harness.runs.get()).commit()  # without a row: it is not the table
    (await harness.runs.get()).fail(LOCKED())
    run = await harness.runs.get()
    assert run.callers == ["bob"]
    run.commit()
    for _ in range(4):
        (await harness.apart.get()).commit()
    assert await asyncio.gather(first, *queued) == ["org of alice"] * 4
    assert await bob == "org of bob"
    assert harness.runs.empty()


async def test_a_lane_goes_on_while_a_locked_statement_is_halved() -> None:
    harness = Harness()
    await harness.submit("first")
    in_flight = await harness.runs.get()
    stuck = [await harness.submit(user) for user in ("alice", "bob")]
    in_flight.commit()
    (await harness.runs.get()).fail(LOCKED())
    (await harness.runs.get()).commit()  # without a row: it is not the table
    halves = [await harness.runs.get(), await harness.runs.get()]
    carol = await harness.submit("carol")
    (await harness.runs.get()).commit()
    assert await carol == "org of carol"
    for half in halves:
        half.commit()
    assert [await answer for answer in stuck] == ["org of alice", "org of bob"]


async def test_a_locked_table_is_nobodys_row() -> None:
    """All wait for it together, and nobody goes apart."""
    harness = Harness()
    first = await harness.submit("first")
    in_flight = await harness.runs.get()
    answers = [await harness.submit(user) for user in ("alice", "bob")]
    in_flight.commit()
    for _ in range(3):
        (await harness.runs.get()).fail(LOCKED())
        (await harness.runs.get()).fail(LOCKED())  # the statement without a row
    run = await harness.runs.get()
    assert run.callers == ["alice", "bob"]
    run.commit()
    await asyncio.gather(first, *answers)
    assert harness.apart.empty()


async def test_one_caller_cannot_take_all_places_apart() -> None:
    harness = Harness()
    first = await harness.submit("alice")
    (await harness.runs.get()).fail(LOCKED())
    (await harness.runs.get()).commit()
    (await harness.runs.get()).fail(LOCKED())
    runs = [await harness.apart.get()]
    more = [await harness.submit("alice", [n]) for n in range(10)]
    await settle()
    while not harness.apart.empty():
        runs.append(harness.apart.get_nowait())
    assert len(runs) == 4
    while not all(answer.done() for answer in [first, *more]):
        for run in runs:
            run.commit()
        runs = []
        await asyncio.sleep(0.005)
        while not harness.apart.empty():
            runs.append(harness.apart.get_nowait())


async def go_apart(harness: Harness, user: str) -> "tuple[asyncio.Task[str | None], Run]":
    """Start a request that meets a locked row, up to its statement apart."""
    answer = await harness.submit(user)
    (await harness.runs.get()).fail(LOCKED())
    (await harness.runs.get()).commit()  # without a row: it is not the table
    (await harness.runs.get()).fail(LOCKED())
    return answer, await harness.apart.get()


async def test_a_statement_apart_is_tried_again_and_says_what_is_wrong() -> None:
    harness = Harness()
    answer, run = await go_apart(harness, "alice")
    run.fail(ConnectionResetError())
    (await harness.apart.get()).commit()
    assert await answer == "org of alice"
    for error, seen in (
        (asyncpg.UndefinedTableError("no such table"), BrokenStatement),
        (asyncpg.DataError("refused"), asyncpg.DataError),
    ):
        answer = await harness.submit("alice")
        (await harness.apart.get()).fail(error)
        with pytest.raises(seen):
            await answer
    assert harness.runs.empty()
    assert harness.apart.empty()


async def test_a_caller_comes_back_from_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time after its last wait for a lock; who waited there again stays."""
    monkeypatch.setattr(group_commit, "APART", 2.0)
    monkeypatch.setattr(group_commit, "LOCKED", 60.0)
    harness = Harness()
    loop = asyncio.get_running_loop()
    answer, run = await go_apart(harness, "alice")
    run.commit()
    await answer
    looks = ticks(monkeypatch)
    while len(looks) < 3:  # who comes back is looked for, and is not there yet
        await asyncio.sleep(0.01)
    monkeypatch.setattr(group_commit, "LOCKED", 0.0)  # it waits again
    answer = await harness.submit("alice")
    assert harness.runs.empty()
    (await harness.apart.get()).commit()
    await answer
    again = loop.time()
    monkeypatch.setattr(group_commit, "LOCKED", 60.0)
    async with asyncio.timeout(30):
        while True:
            answer = await harness.submit("alice")
            await asyncio.sleep(0.01)
            if harness.apart.empty():
                break
            harness.apart.get_nowait().commit()
            await answer
    assert loop.time() - again > 1.9
    (await harness.runs.get()).commit()
    assert await answer == "org of alice"


async def test_large_requests_have_a_lane_of_their_own() -> None:
    """Several of their statements at a time, and a small request waits for none of them."""
    harness = Harness()
    answers = [await harness.submit(f"large {n}", LARGE) for n in range(LARGE_IN_FLIGHT + 2)]
    runs = [await harness.runs.get() for _ in range(LARGE_IN_FLIGHT)]
    assert harness.runs.empty()
    small = await harness.submit("small")
    run = await harness.runs.get()
    assert run.callers == ["small"]
    run.commit()
    assert await small == "org of small"
    runs[0].commit()
    runs.append(await harness.runs.get())
    assert len(runs[-1].callers) == 2
    for run in runs[1:]:
        run.commit()
    await asyncio.gather(*answers)
