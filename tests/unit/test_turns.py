"""Turns of callers, for places and for the time of the loop."""

import asyncio
import itertools
import math
from functools import partial

import pytest

from service.errors import Unavailable
from service.turns import Rotation, Turns


class Errands:
    """Callers who hold their turn until the test ends it."""

    def __init__(self, each: int, most: float = math.inf) -> None:
        self.turns = Turns(each, most)
        self.held: list[str] = []

    async def start(self, caller: str, seconds: float = 60) -> "asyncio.Task[None]":
        """Begin one, and let it come as far as it can."""
        task = asyncio.create_task(self._hold(caller, asyncio.get_running_loop().time() + seconds))
        await settle()
        return task

    async def _hold(self, caller: str, deadline: float) -> None:
        async with self.turns.take(caller, deadline):
            self.held.append(caller)
            try:
                await asyncio.Event().wait()
            finally:
                self.held.remove(caller)


async def settle() -> None:
    """Let the loop go on until what can be done is done."""
    for _ in range(50):
        await asyncio.sleep(0)


async def end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await settle()


async def test_who_has_enough_waits_in_a_line_of_their_own() -> None:
    errands = Errands(each=2)
    alice = [await errands.start("alice") for _ in range(4)]
    bob = await errands.start("bob")
    assert sorted(errands.held) == ["alice", "alice", "bob"]
    await end(alice[0])
    assert sorted(errands.held) == ["alice", "alice", "bob"]  # the third has its turn
    await end(*alice[1:], bob)
    assert errands.held == []


async def test_a_line_that_is_too_long_is_refused_at_once() -> None:
    """Those of other callers are not."""
    errands = Errands(each=1, most=2)
    alice = [await errands.start("alice") for _ in range(2)]
    with pytest.raises(Unavailable) as refusal:
        await (await errands.start("alice"))
    assert refusal.value.cause == "turns"
    bob = await errands.start("bob")
    assert sorted(errands.held) == ["alice", "bob"]
    await end(*alice, bob)
    again = await errands.start("alice")
    assert errands.held == ["alice"]
    await end(again)


async def test_who_waits_is_refused_at_the_deadline_and_leaves_the_line() -> None:
    errands = Errands(each=1)
    first = await errands.start("alice")
    late = await errands.start("alice", seconds=0.02)
    with pytest.raises(Unavailable) as refusal:
        await late
    assert refusal.value.cause == "turns"
    await end(first)
    next_ = await errands.start("alice")
    assert errands.held == ["alice"]
    await end(next_)


async def test_a_caller_without_anything_under_way_is_forgotten() -> None:
    """A million user ids that came once take no memory."""
    errands = Errands(each=1)
    tasks = [await errands.start(caller) for caller in ("alice", "alice", "bob")]
    await end(*tasks)
    assert not vars(errands.turns)["_lines"]


async def test_a_rotation_gives_one_turn_at_a_time_to_the_next_caller() -> None:
    """Callers in turn, each caller's pieces in their order; what is added meanwhile is not lost."""
    rotation, done, turns = Rotation(), list[str](), list[int]()
    for piece in ("a1", "a2", "a3", "b1", "c1", "b2"):
        rotation.add(piece[0], partial(done.append, piece))
    rotation.add("d", lambda: rotation.add("a", lambda: done.append("a4")))
    for _ in range(10):
        turns.append(len(done))
        await asyncio.sleep(0)
    assert done == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(turns))
    rotation.add("e", lambda: done.append("e1"))
    await asyncio.sleep(0)
    assert done[-1] == "e1"
