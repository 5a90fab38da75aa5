"""Group commit: requests that arrive while a statement is in flight share the next one.

A commit costs the database the same whether it carries one mark or two hundred. So a request does
not run a statement of its own. It joins a lane; where fewer statements are in flight than the lane
may have, one starts at once, with all that is queued; what arrives meanwhile waits for the next.
Nothing is timed: alone, a request goes out at once, and the busier it gets, the more each statement
carries.

A request is answered after its statement has committed, with its own outcome; one that is past its
deadline is answered with 503, and nothing is begun for it any more. What sharing could cost others:

* Data that the database refuses: the statement is run again in halves, until the refused request is
  alone.
* A locked row: shared statements wait for a lock only for a moment, then they are halved as well.
  The request that is alone and still waits goes apart, to a connection of its own, and so does all
  that its caller asks for in the time after that. The same where a statement takes too long: that
  may be for one caller's rows (versions that a backup keeps the server from cleaning up).
* Many ids: such requests have a lane of their own.
"""

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from service.config import Commit, Limits
from service.database.failures import is_broken, is_locked, is_too_slow, is_transient
from service.database.lanes import Lane, Member
from service.database.retry import AWAY, pauses
from service.errors import BrokenStatement, Unavailable
from service.observing import Observers, StatementRan
from service.turns import Turns


class Row(Protocol):
    """What the database says of a caller: user_id and organization_id."""

    def __getitem__(self, name: str, /) -> Any: ...  # noqa: D105 - a row of asyncpg, a dict


# callers, owners, ids, seconds -> a row for each caller that exists; one attempt
Statement = Callable[[Sequence[str], Sequence[str], Sequence[int], float], Awaitable[Sequence[Row]]]

SMALL = 100  # ids; requests with more travel in the lane for large ones
SMALL_IDS = 1000  # in a statement of the other lane: what it takes, all wait for; 10 ms
LARGE_IN_FLIGHT = 4  # statements of that lane at a time: each keeps one core of PostgreSQL busy
QUEUED_REQUESTS = 100  # of limits.max_ids ids each, that may wait in it
RESOLUTION = 0.05  # seconds between two looks at the deadlines, which are one for all requests
APART = 30.0  # seconds that a caller stays apart after the last wait for a lock
APART_EACH = 4  # statements of one caller at a time, there
APART_LARGE = 2  # large statements at a time, there, of all callers
_LARGE = "all callers"
LOCKED = 0.05  # seconds; a statement apart that took longer may have waited for a lock
TABLE = 1.0  # seconds for the statement that tells a locked table from a locked row


class GroupCommit:
    """Merges the requests of one kind into statements."""

    def __init__(
        self,
        kind: str,
        shared: Statement,
        apart: Statement,
        config: Commit,
        limits: Limits,
        observers: Observers,
    ) -> None:
        """Run requests by `shared`, which gives up on a lock soon, or `apart`, which does not.

        `observers` are told of each statement, under the name `kind`.
        """
        self.kind = kind
        self._observers = observers
        self._patience = limits.deadline
        self._shared = shared
        self._apart = apart
        bound = QUEUED_REQUESTS * limits.max_ids
        few = min(config.max_ids, SMALL_IDS)
        self._small = Lane(config, few, bound, limits.deadline, config.in_flight)
        self._large = Lane(config, config.max_ids, bound, limits.deadline, LARGE_IN_FLIGHT)
        self.lanes: Mapping[str, Lane] = {"small": self._small, "large": self._large}
        self._waiting: set[Member] = set()  # whose callers have no answer yet
        self._ticking = False
        self._apart_until: dict[str, float] = {}  # by caller, loop time
        self._turns = Turns(APART_EACH)
        self._turns_of_large = Turns(APART_LARGE)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._waiting)

    async def submit(self, user_id: str, ids: Sequence[int], deadline: float) -> Row | None:
        """Run `ids` for `user_id` in the next statement, and wait until it has committed.

        Args:
            user_id: the caller.
            ids: of events; none for a caller who is only to be looked up.
            deadline: in loop time; what is not committed by then is given up.

        Returns:
            The caller's row (user_id, organization_id); None where there is no such user.

        Raises:
            Unavailable: too much is waiting, or the deadline has passed. Nothing is begun for the
                request any more, and what was in flight has ended, unless the server is away.
            BrokenStatement: the statement fails whoever asks.
        """
        loop = asyncio.get_running_loop()
        member = Member(user_id, ids, deadline, loop.create_future())
        if self._apart_until and user_id in self._apart_until:
            self._spawn(self._run_apart(member))
        else:
            lane = self._small if len(ids) <= SMALL else self._large
            lane.join(member, loop.time())
            if lane.running < lane.in_flight:
                lane.running += 1
                self._spawn(self._run(lane))
        self._waiting.add(member)
        if not self._ticking:
            self._ticking = True
            loop.call_later(RESOLUTION, self._tick)
        try:
            row: Row | None = await member.outcome
            return row
        finally:
            self._waiting.discard(member)

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        """Give up on requests that are past their deadline, and look again while any waits."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for member in self._waiting:
            if member.deadline <= now and not member.in_flight:
                member.refuse(Unavailable(AWAY, "deadline"))
        for user_id in [user for user, until in self._apart_until.items() if until <= now]:
            del self._apart_until[user_id]
        self._ticking = bool(self._waiting or self._apart_until)
        if self._ticking:
            loop.call_later(RESOLUTION, self._tick)

    async def _run(self, lane: Lane) -> None:
        """Run statements until the lane is empty."""
        loop = asyncio.get_running_loop()
        try:
            while batch := lane.take(loop.time()):
                await self._commit(batch, lane)
        finally:
            lane.running -= 1

    async def _commit(self, batch: list[Member], lane: Lane, *, split: bool = False) -> None:
        """Run one statement for `batch` and answer each member, in as many attempts as it takes."""
        for pause in pauses():
            batch = self._sort_out(_with_time_left(batch))
            if not batch:
                return
            try:
                await self._attempt(self._shared, batch, lane)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the members' answer
                if is_locked(error) and not await self._table_is_locked(known=split):
                    if split or len(batch) > 1:
                        self._split(batch, lane, error)
                        return
                    split = True  # once more: the table may have been locked until now
                # Where nobody in it is late, it ended at the server's own limit: by whose rows?
                is_slow = is_too_slow(error) and _with_time_left(batch) == batch
                if is_slow or not is_transient(error):
                    self._split(batch, lane, error)
                    return
            else:
                return
            await _pause(pause, batch)

    async def _attempt(self, statement: Statement, batch: list[Member], lane: Lane | None) -> None:
        """Run a statement once; answer its members if it commits."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        callers = [member.user_id for member in batch]
        owners = [member.user_id for member in batch for _ in member.ids]
        ids = [event_id for member in batch for event_id in member.ids]
        first = min([member.deadline for member in batch])
        failure: str | None = None
        for member in batch:
            member.in_flight = True
        try:
            rows = await statement(callers, owners, ids, first - started)
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            for member in batch:
                member.in_flight = False
            self._observers.tell(
                StatementRan(
                    self.kind,
                    len(batch),
                    len(ids),
                    started - (first - self._patience),
                    loop.time() - started,
                    failure,
                )
            )
        if lane:
            lane.note(loop.time() - started)
        found = {row["user_id"]: row for row in rows}
        for member in batch:
            if not member.outcome.done():
                member.outcome.set_result(found.get(member.user_id))

    async def _table_is_locked(self, *, known: bool) -> bool:
        """Whether a statement without a row waits as well, if that is not `known` to be no."""
        if known:
            return False
        try:
            await self._shared([], [], [], TABLE)
        except Exception:  # noqa: BLE001 - locked or away: the next attempt will tell
            return True
        return False

    def _sort_out(self, batch: list[Member]) -> list[Member]:
        """Send apart whose callers went there while they waited; return the others."""
        if not self._apart_until:
            return batch
        for member in batch:
            if member.user_id in self._apart_until:
                self._spawn(self._run_apart(member))
        return [member for member in batch if member.user_id not in self._apart_until]

    def _split(self, batch: list[Member], lane: Lane, error: Exception) -> None:
        """Run a batch in halves, beside the lane; a member that is alone has its error."""
        if is_broken(error):  # nobody's data is at fault
            for member in batch:
                member.refuse(BrokenStatement(str(error)))
        elif len(batch) > 1:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self._spawn(self._commit(half, lane, split=True))
        elif is_locked(error) or is_too_slow(error):
            self._put_apart(batch[0])
            self._spawn(self._run_apart(batch[0]))
        else:
            batch[0].refuse(copy.copy(error))

    def _put_apart(self, member: Member) -> None:
        self._apart_until[member.user_id] = asyncio.get_running_loop().time() + APART

    async def _run_apart(self, member: Member) -> None:
        """Run a request on a connection of its own, where it may wait for a locked row."""
        loop = asyncio.get_running_loop()
        try:
            async with (
                self._turns.take(member.user_id, member.deadline),
                self._turns_of_large.take(_LARGE, member.deadline)
                if len(member.ids) > SMALL
                else contextlib.nullcontext(),
            ):
                for pause in pauses():
                    if not _with_time_left([member]):
                        return
                    started = loop.time()
                    try:
                        await self._attempt(self._apart, [member], None)
                    except Exception as error:
                        if not is_transient(error):
                            raise
                    else:
                        return
                    finally:
                        if loop.time() - started > LOCKED:
                            self._put_apart(member)
                    await _pause(pause, [member])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the member's answer
            member.refuse(BrokenStatement(str(error)) if is_broken(error) else error)


def _with_time_left(batch: list[Member]) -> list[Member]:
    """Those who wait for an answer and have time for an attempt; the late ones get their 503."""
    now = asyncio.get_running_loop().time()
    for member in batch:
        if member.deadline <= now:
            member.refuse(Unavailable(AWAY, "deadline"))
    return [member for member in batch if not member.outcome.done()]


async def _pause(seconds: float, batch: list[Member]) -> None:
    """Wait, but no longer than anybody in the batch does: others are behind it."""
    latest = max(member.deadline for member in batch)
    await asyncio.sleep(min(seconds, latest - asyncio.get_running_loop().time()))
