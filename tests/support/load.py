"""A steady load: callers that mark events, and remember what was acknowledged."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self

import aiohttp

from tests.conftest import bearer

FIRST_EVENT, LAST_EVENT = 1001, 60_000  # in acme, for whoever needs many
EVENTS = f"""
    insert into system_event_log (organization_id, id, context, event, context_id, user_id)
    select 'acme', id, 0, 0, 'thing', 'bob' from generate_series({FIRST_EVENT}, {LAST_EVENT}) id
"""
NO_ANSWER = 0  # in place of a status


class Load:
    """Alice marks the events, each once, through several callers."""

    CALLERS = 8

    def __init__(self, mark: Callable[[int], Awaitable[int]], pause: float = 0) -> None:
        """Mark through `mark`, which returns a status; with a pause between two, in seconds."""
        self._mark = mark
        self._pause = pause
        self._ids = iter(range(FIRST_EVENT, LAST_EVENT + 1))
        self._tasks: list[asyncio.Task[None]] = []
        self._progress = asyncio.Condition()
        self._last_good = [0.0] * self.CALLERS  # loop time of each caller's last 200
        self.acknowledged: set[int] = set()
        self.refused: list[int] = []  # statuses
        self.slowest = 0.0  # seconds

    async def __aenter__(self) -> Self:
        """Start them, and wait until they are well under way."""
        self._tasks = [asyncio.create_task(self._call(n)) for n in range(self.CALLERS)]
        await self.more()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop each after its last answer, once all of them got on with it."""
        await self.more()
        await self.stop()

    async def stop(self) -> None:
        """Stop each after its last answer."""
        self._ids = iter(())
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def more(self) -> None:
        """Wait until a hundred more are acknowledged."""
        wanted = len(self.acknowledged) + 100
        await self._until(lambda: len(self.acknowledged) >= wanted)

    async def well(self, since: float) -> float:
        """Wait until each caller has had a 200 after that loop time; seconds until the last had."""
        await self._until(lambda: min(self._last_good) > since)
        return max(self._last_good) - since

    def seen(self) -> str:
        """What callers saw, in words."""
        if not self.refused:
            return f"nothing; the slowest waited {self.slowest:.1f} s"
        found = ", ".join(
            f"{count} x {status or 'no answer'}" for status, count in Counter(self.refused).items()
        )
        total = len(self.refused) + len(self.acknowledged)
        return f"{found}, of {total}; the slowest waited {self.slowest:.1f} s"

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60), self._progress:
            await self._progress.wait_for(condition)

    async def _call(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        for event_id in itertools.takewhile(bool, iter(lambda: next(self._ids, 0), None)):
            started = loop.time()
            status = await self._mark(event_id)
            self.slowest = max(self.slowest, loop.time() - started)
            async with self._progress:
                if status == 200:
                    self.acknowledged.add(event_id)
                    self._last_good[number] = loop.time()
                else:
                    self.refused.append(status)
                self._progress.notify_all()
            await asyncio.sleep(self._pause)


def marking(session: aiohttp.ClientSession, base: str) -> Callable[[int], Awaitable[int]]:
    """What marks an event at that address; without an answer the status is 0."""
    headers = bearer(exp=time.time() + 7 * 86_400)  # also after a jump of the clock

    async def mark(event_id: int) -> int:
        url = f"{base}/systemevent/read"
        try:
            async with session.post(url, json={"id": event_id}, headers=headers) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return NO_ANSWER

    return mark
