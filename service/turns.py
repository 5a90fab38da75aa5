"""Turns: no caller can take all of what callers share: places, or the time of the loop."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable

from service.errors import Unavailable

TOO_MUCH = "too much is under way, try again later"


class Turns:
    """Counts what each caller has under way; one who has enough waits, and holds up nobody else."""

    def __init__(self, each: int, most: float = math.inf) -> None:
        """Let each caller have up to `each` things under way; `most`, with those that wait."""
        self._each = each
        self._most = most
        self._lines: dict[str, tuple[asyncio.Semaphore, set[object]]] = {}

    @contextlib.asynccontextmanager
    async def take(self, caller: str, deadline: float) -> AsyncIterator[None]:
        """Wait for a turn of this caller until `deadline` (loop time), and hold it.

        Raises:
            Unavailable: the caller's other requests took all of the time, or are too many.
        """
        line, present = self._lines.setdefault(caller, (asyncio.Semaphore(self._each), set()))
        if len(present) >= self._most:
            raise Unavailable(TOO_MUCH, "turns")
        present.add(me := object())
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await line.acquire()
            except TimeoutError:
                raise Unavailable(TOO_MUCH, "turns") from None
            try:
                yield
            finally:
                line.release()
        finally:
            present.discard(me)
            if not present:
                del self._lines[caller]


class Rotation:
    """Pieces of work, one in each turn of the loop; of the next caller each time."""

    def __init__(self) -> None:
        """Nothing waits yet."""
        self._lines: dict[Hashable, deque[Callable[[], object]]] = {}
        self._is_due = False

    def add(self, caller: Hashable, piece: Callable[[], object]) -> None:
        """Have `piece` called in a turn of this caller."""
        self._lines.setdefault(caller, deque()).append(piece)
        self._call_soon()

    async def turn(self, caller: Hashable, deadline: float) -> None:
        """Wait for a turn of this caller.

        Raises:
            Unavailable: it is past `deadline` (loop time).
        """
        loop = asyncio.get_running_loop()
        mine = asyncio.Event()
        self.add(caller, mine.set)
        await mine.wait()
        if loop.time() > deadline:
            raise Unavailable("too much is waiting, try again later", "turns")

    def _call_soon(self) -> None:
        if self._lines and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        caller, line = next(iter(self._lines.items()))
        del self._lines[caller]
        piece = line.popleft()
        if line:
            self._lines[caller] = line  # behind the others
        self._is_due = False
        self._call_soon()
        piece()
