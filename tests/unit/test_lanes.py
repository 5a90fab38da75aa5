"""A lane's bounds, and who is told at once that waiting will not help.

Times are given, not taken.
"""

import asyncio
from collections.abc import Iterator

import pytest

from service.config import Commit
from service.database.lanes import Lane, Member
from service.errors import Unavailable

PATIENCE = 10.0  # seconds


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """For futures only; nothing runs on it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def lane(in_flight: int = 1, **limits: int) -> Lane:
    return Lane(Commit(**limits), 10_000, 1_000_000, PATIENCE, in_flight)


def member(loop: asyncio.AbstractEventLoop, user: str, arrived: float = 0, ids: int = 1) -> Member:
    return Member(user, range(ids), arrived + PATIENCE, loop.create_future())


def test_one_caller_has_no_more_than_a_quarter_of_a_lane(loop: asyncio.AbstractEventLoop) -> None:
    queue = lane(max_queue=8)
    for _ in range(2):
        queue.join(member(loop, "flood"), 0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "flood"), 0)
    queue.join(member(loop, "other"), 0)
    assert [taken.user_id for taken in queue.take(0)] == ["flood", "other", "flood"]
    queue.join(member(loop, "flood"), 0)  # what was taken does not count


def test_one_caller_has_no_more_than_a_quarter_of_the_ids_of_a_lane(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Else a lane for 1,000,000 were full with 500 requests of one, a twentieth of its places."""
    queue = lane()
    for _ in range(100):
        queue.join(member(loop, "flood", ids=2500), 0)
    with pytest.raises(Unavailable) as refusal:
        queue.join(member(loop, "flood", ids=2500), 0)
    assert refusal.value.cause == "share of the queue full"
    queue.join(member(loop, "flood", ids=250), 0)  # few do not count
    queue.join(member(loop, "other", ids=10_000), 0)
    for _ in queue.take(0):  # what was taken does not count
        queue.join(member(loop, "flood", ids=2500), 0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "flood", ids=2500), 0)
    while queue.queued:
        queue.take(0)
    queue.join(member(loop, "flood", ids=10_000), 0)


def test_callers_are_served_in_rotation(loop: asyncio.AbstractEventLoop) -> None:
    """Who asks for much waits for itself; each one's requests keep their order."""
    queue = lane(max_requests=4)
    asked = [member(loop, user) for user in ("flood",) * 6 + ("alice", "bob", "alice")]
    for each in asked:
        queue.join(each, 0)
    flood, (alice, bob, again) = asked[:6], asked[6:]
    assert queue.take(0) == [flood[0], alice, bob, flood[1]]
    assert queue.take(0) == [again, *flood[2:5]]
    assert queue.take(0) == [flood[5]]
    assert queue.take(0) == []


def test_a_small_request_does_not_wait_for_the_ids_of_others(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """It travels with the next statement, and is let in where there is room for it alone."""
    queue = lane()
    large = [member(loop, f"flood {n}", ids=10_000) for n in range(100)]
    for each in large:
        queue.join(each, 0)
    for _ in range(20):
        queue.note(2.0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "large", ids=1000), 0)
    small = [member(loop, "alice", ids=200), member(loop, "bob")]
    for each in small:
        queue.join(each, 0)
    assert queue.take(0) == [large[0], *reversed(small)]
    assert queue.take(0) == [large[1]]


@pytest.mark.parametrize("load", [2, 5])
@pytest.mark.parametrize("seconds", [0.15, 1.0])
def test_lasting_overload_leaves_the_capacity_to_those_who_can_be_served(
    loop: asyncio.AbstractEventLoop, load: int, seconds: float
) -> None:
    """A constant rate above the capacity: who gets in is answered, who is not is told at once."""
    size, statements = 16, int(10 * PATIENCE / seconds)
    queue = lane(max_requests=size)
    in_time = late = told_at_once = 0
    now = 0.0
    for n in range(statements):
        for k in range(size * load):
            arrived = now + seconds * k / (size * load)
            try:
                queue.join(member(loop, f"{n} {k}", arrived), arrived)
            except Unavailable:
                told_at_once += 1
        now += seconds
        batch = queue.take(now)
        for taken in batch:
            if now + seconds <= taken.deadline:
                in_time += 1
            else:
                late += 1
        queue.note(seconds)
    assert in_time >= 0.95 * size * statements
    assert late == 0
    assert told_at_once > in_time * (load - 1) * 0.8


def test_who_has_too_little_time_left_is_refused_when_its_turn_comes(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = lane()
    early, later = member(loop, "early", 0), member(loop, "later", 5)
    queue.join(early, 0)
    queue.join(later, 5)
    for _ in range(20):
        queue.note(2.0)
    assert queue.take(8.0) == [later]
    with pytest.raises(Unavailable):
        early.outcome.result()


def test_one_slow_statement_does_not_close_the_lane(loop: asyncio.AbstractEventLoop) -> None:
    """However slow the last statements were, a request that need not wait is tried."""
    queue = lane()
    for _ in range(50):
        queue.note(1000.0)
    queue.join(member(loop, "alice", 0), 0)
    assert len(queue.take(0)) == 1


def test_a_lane_is_full_by_requests_and_by_ids(loop: asyncio.AbstractEventLoop) -> None:
    """What is taken makes room; a request that is alone is taken, however many ids it has."""
    queue = Lane(Commit(max_queue=3), 10, 20, PATIENCE, 1)
    queue.join(member(loop, "alice", ids=21), 0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "bob", ids=1), 0)
    assert len(queue.take(0)) == 1
    for user in ("alice", "bob", "carol"):
        queue.join(member(loop, user, ids=6), 0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "dave", ids=1), 0)
    assert [len(queue.take(0)) for _ in range(4)] == [1, 1, 1, 0]


def test_who_asks_for_little_is_let_in_before_those_who_ask_for_much(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """What it would wait for is its turn, not all that one caller has queued."""
    queue = lane(max_requests=1)
    for _ in range(60):
        queue.note(1.0)
    for _ in range(20):
        queue.join(member(loop, "flood", arrived=60), 0)
    alice = member(loop, "alice")
    queue.join(alice, 0)
    with pytest.raises(Unavailable):
        queue.join(member(loop, "flood"), 0)
    queue.take(0)
    assert queue.take(0) == [alice]


@pytest.mark.parametrize(("in_flight", "before"), [(4, 20), (2, 10)])
def test_who_would_wait_too_long_is_told_on_arrival(
    loop: asyncio.AbstractEventLoop, in_flight: int, before: int
) -> None:
    """Of statements of a second, so many can be before one who has ten, but not twice as many."""
    queue = lane(in_flight, max_requests=1)
    for _ in range(60):
        queue.note(1.0)
    for n in range(before):
        queue.join(member(loop, str(n), arrived=60), 0)
    queue.join(member(loop, "last"), 0)
    for n in range(before):
        queue.join(member(loop, f"more {n}", arrived=60), 0)
    with pytest.raises(Unavailable) as refusal:
        queue.join(member(loop, "one too many"), 0)
    assert refusal.value.cause == "would wait too long"
