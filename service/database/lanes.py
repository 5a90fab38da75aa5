"""A lane: requests that wait for the next statement, callers in rotation and within bounds."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from service.config import Commit
from service.errors import Unavailable

OVERLOADED = "overloaded, try again later"
WAITED = "waited too long"
# How much of a lane may be one caller's.
SHARE = 4  # a quarter
# How many ids a statement may carry beyond its bound, of small requests
EXTRA = 4  # a quarter
# A request has few ids where it has no more than such a part of what a statement may carry.
LIGHT = 40
# Who has less time left than a statement takes, and half as much again, would not get its answer:
# its statement would be ended with everybody's work in it.
MARGIN = 1.5
# An average of the last statements, in which the newest counts for a fifth.
NEWEST = 0.2


class Member(msgspec.Struct, eq=False):
    """A request on its way through a statement."""

    user_id: str
    ids: Sequence[int]
    deadline: float  # loop time
    outcome: "asyncio.Future[Any]"  # the caller's row, or None; see group_commit.py
    in_flight: bool = False  # a statement with it runs: only that can say how it ends

    def refuse(self, error: Exception) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


@dataclass(eq=False)
class Lane:
    """A queue of requests, callers in rotation, and how long its statements take."""

    config: Commit
    max_ids: int  # in one statement, though one request may bring more
    max_queued_ids: int
    patience: float  # seconds that a request has in all
    in_flight: int  # statements at a time
    running: int = 0
    share: int = field(init=False)  # requests of one caller
    few: int = field(init=False)  # ids
    queued: int = 0  # requests
    _lines: dict[str, list[Member]] = field(default_factory=dict)  # by caller; none is empty
    _ids: int = 0
    _took: float = 0.0  # seconds that a statement takes, on average

    def __post_init__(self) -> None:
        """Work out the share of one caller."""
        self.share = max(self.config.max_queue // SHARE, 1)
        self.few = self.max_ids // LIGHT

    def join(self, member: Member, now: float) -> None:
        """Queue a request.

        Raises:
            Unavailable: the lane is full, the caller's share of it is, or it moves too slowly for
                this request to be answered in time.
        """
        queued, config = self.queued, self.config
        line = self._lines.get(member.user_id)
        has_many = len(member.ids) > self.few
        if queued:
            mine = len(line) if line else 0
            # One with few ids does not wait for the ids of others, see take().
            ids = self._ids + len(member.ids) if has_many else 0
            own = self._many_of(line) + len(member.ids) if has_many and line else 0
            if queued >= config.max_queue or ids > self.max_queued_ids:
                raise Unavailable(OVERLOADED, "queue full")
            if mine >= self.share or own > self.max_queued_ids // SHARE:
                raise Unavailable(OVERLOADED, "share of the queue full")
            if queued >= config.max_requests or ids >= self.max_ids:  # not the next statement's
                statements = max(queued / config.max_requests, ids / self.max_ids)
                statements *= min((mine + 1) * len(self._lines) / queued, 1) / self.in_flight
                # One statement is in flight, and then there is its own.
                if now + self._took * (statements + 1 + MARGIN) > member.deadline:
                    raise Unavailable(OVERLOADED, "would wait too long")
        if line:
            line.append(member)
        else:
            self._lines[member.user_id] = [member]
        self.queued += 1
        self._ids += len(member.ids)

    def _many_of(self, line: Sequence[Member]) -> int:
        """The ids of those requests of a caller that have many."""
        return sum([len(each.ids) for each in line if len(each.ids) > self.few])

    def take(self, now: float) -> list[Member]:
        """Take the next statement's members off the queue.

        Callers in rotation, each one's oldest first; as many as one statement may carry, and always
        one. Where their ids are too many for it, the smallest of the others come along, with a
        quarter as many ids at most: they cost it little, and wait for nobody. Who has an answer
        already is left out, and so is who has too little time left, with a 503.
        """
        lines, most = self._lines, self.config.max_requests
        latest = now + self._took * MARGIN
        if self.queued == len(lines) <= most and self._ids <= self.max_ids:
            return self._take_all(latest)
        batch: list[Member] = []
        ids = 0
        while lines and len(batch) < most:
            user_id = next(iter(lines))
            if batch and ids + len(lines[user_id][0].ids) > self.max_ids:
                break
            ids += self._pop(user_id, batch, latest)
        else:
            return batch
        ids = 0
        for user_id in sorted(lines, key=lambda user_id: len(lines[user_id][0].ids)):
            ids += len(lines[user_id][0].ids)
            if ids > self.max_ids // EXTRA or len(batch) == most:
                break
            self._pop(user_id, batch, latest)
        return batch

    def _take_all(self, latest: float) -> list[Member]:
        """Take what is there, one request of each caller."""
        taken = [member for (member,) in self._lines.values()]
        self._lines.clear()
        self.queued = self._ids = 0
        for member in taken:
            if member.deadline < latest:
                member.refuse(Unavailable(OVERLOADED, WAITED))
        return [member for member in taken if not member.outcome.done()]

    def _pop(self, user_id: str, batch: list[Member], latest: float) -> int:
        """Take a caller's oldest request, into `batch` if it can be served; its ids."""
        line = self._lines.pop(user_id)
        member = line.pop(0)
        if line:
            self._lines[user_id] = line  # behind the others
        self.queued -= 1
        self._ids -= len(member.ids)
        if member.outcome.done():
            return 0
        if member.deadline < latest:
            member.refuse(Unavailable(OVERLOADED, WAITED))
            return 0
        batch.append(member)
        return len(member.ids)

    def note(self, seconds: float) -> None:
        """Learn how long a statement took; never so much that nobody would be let in any more."""
        took = self._took + (seconds - self._took) * NEWEST
        self._took = min(took, self.patience / 2 / (1 + MARGIN))
