"""Group commit: requests that arrive while a statement is in flight share the next one.

A commit costs the database the same whether it carries one mark or two hundred. So a request does
not run a statement of its own. It joins a queue; whoever finds no statement in flight starts one,
with all that is queued; what arrives meanwhile waits for the next. Nothing is timed: alone, a
request goes out at once, and the busier it gets, the more each statement carries.

A request is answered after its statement has committed, with its own outcome. A statement that the
database refuses is run again in halves, until whoever is at fault stands alone.
"""

import asyncio
import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from service.config import Commit
from service.errors import BrokenStatement, InvalidToken, Unavailable

# callers, owners, ids, deadline (loop time) -> organization by user, for each caller that exists
Statement = Callable[
    [Sequence[str], Sequence[str], Sequence[int], float], Awaitable[Mapping[str, str | None]]
]
# Requests with more ids than this travel in a lane of their own, so that they hold up the
# others by one statement at most: each takes from both.
SMALL = 100
# Seconds between two looks at the deadlines, which take the longer the more requests wait.
RESOLUTION = 0.05


@dataclass(slots=True, eq=False)
class _Member:
    """A request on its way through a statement."""

    user_id: str
    ids: Sequence[int]
    deadline: float
    organization: asyncio.Future[str | None]


class GroupCommit:
    """Merges the requests of one kind into statements."""

    def __init__(self, statement: Statement, config: Commit, max_queued_ids: int) -> None:
        """Queue for `statement`, within the limits of `config`."""
        self._statement = statement
        self._config = config
        self._max_queued_ids = max_queued_ids
        self._small: deque[_Member] = deque()
        self._large: deque[_Member] = deque()
        self._queued_ids = 0
        self._waiting: set[_Member] = set()  # whose callers have no answer yet
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._runners: set[asyncio.Task[None]] = set()

    async def submit(self, user_id: str, ids: Sequence[int], deadline: float) -> str | None:
        """Run `ids` for `user_id` in the next statement, and wait until it has committed.

        Args:
            user_id: the caller.
            ids: of events; none for a caller who is only to be looked up.
            deadline: in loop time; what is not committed by then is given up waiting for.

        Returns:
            The caller's organization, None for a caller without one.

        Raises:
            InvalidToken: no such user.
            Unavailable: the queue is full, or the deadline has passed. The marks may still commit.
        """
        if (
            len(self._small) + len(self._large) >= self._config.max_queue
            or self._queued_ids + len(ids) > self._max_queued_ids
        ):
            raise Unavailable("overloaded, try again later")
        loop = asyncio.get_running_loop()
        member = _Member(user_id, ids, deadline, loop.create_future())
        (self._small if len(ids) <= SMALL else self._large).append(member)
        self._queued_ids += len(ids)
        if len(self._runners) < self._config.in_flight:
            self._runners.add(asyncio.create_task(self._run()))
        self._waiting.add(member)
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        try:
            return await member.organization
        finally:
            self._waiting.discard(member)

    def _set_alarm(self, deadline: float) -> None:
        """Have deadlines looked at then, or soon: one timer for all, which is cheaper than many."""
        loop = asyncio.get_running_loop()
        moment = max(deadline, loop.time() + RESOLUTION)
        if moment < self._alarm_at:
            if self._alarm:
                self._alarm.cancel()
            self._alarm_at, self._alarm = moment, loop.call_at(moment, self._expire)

    def _expire(self) -> None:
        """Give up on whoever is past its deadline, and come back for the next."""
        now = asyncio.get_running_loop().time()
        self._alarm, self._alarm_at = None, math.inf
        following = math.inf
        for member in self._waiting:
            if member.organization.done():
                continue
            if member.deadline <= now:
                text = "the database did not answer in time, try again later"
                member.organization.set_exception(Unavailable(text))
            else:
                following = min(following, member.deadline)
        if following < math.inf:
            self._set_alarm(following)

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._runners:
            await asyncio.wait(self._runners)

    async def _run(self) -> None:
        """Run statements until the queue is empty."""
        try:
            while batch := self._take():
                await self._commit(batch)
        finally:
            # Here and not when the task is done, which is a turn of the loop later: whoever comes
            # in between would wait for a runner that looks no more.
            self._runners.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> list[_Member]:
        """Take the next statement's members off the queue, oldest first.

        Small requests first, up to max_requests; then large ones as long as they fit into max_ids,
        and always one, so that neither lane starves the other.
        """
        batch: list[_Member] = []
        ids = 0
        for lane in (self._small, self._large):
            first = True
            while lane and (first or len(batch) < self._config.max_requests):
                if not first and ids + len(lane[0].ids) > self._config.max_ids:
                    break
                member = lane.popleft()
                self._queued_ids -= len(member.ids)
                if not member.organization.done():  # its caller still waits
                    batch.append(member)
                    ids += len(member.ids)
                    first = False
        return batch

    async def _commit(self, batch: list[_Member]) -> None:
        """Run one statement for `batch` and answer each member."""
        try:
            organizations = await self._statement(
                [member.user_id for member in batch],
                [member.user_id for member in batch for _ in member.ids],
                [event_id for member in batch for event_id in member.ids],
                max(member.deadline for member in batch),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the members' answer
            if isinstance(error, Unavailable | BrokenStatement):  # nobody's data is at fault
                for member in batch:
                    if not member.organization.done():
                        member.organization.set_exception(copy.copy(error))
            elif len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
            elif not batch[0].organization.done():
                batch[0].organization.set_exception(error)
            return
        for member in batch:
            if member.organization.done():
                continue
            if member.user_id in organizations:
                member.organization.set_result(organizations[member.user_id])
            else:
                member.organization.set_exception(InvalidToken("user not found"))
