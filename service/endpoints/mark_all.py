"""POST /systemevent/read/all: mark as read all that the caller may see and the filters match."""

import asyncio

import msgspec
from aiohttp import web

from service.database.group_commit import GroupCommit
from service.endpoints.filters import ALL, Fields, Filters
from service.endpoints.one_caller import OneCaller
from service.endpoints.order import read
from service.errors import Unavailable
from service.web.answers import Success
from service.web.body import MAX_INTEGER
from service.web.request_info import info

# A chunk is a statement and a commit. Its rows are locked for some ms, so that marks and unmarks of
# the same caller need not wait long; what is read already is only looked at, and locks nothing.
CHUNK = 4_000  # events that it marks, at most
SCAN = 20_000  # events that it looks at, at most
GIVE_WAY = 4  # chunks, as long as the last one, that it pauses for while marks wait
MARGIN = 2  # chunks, as long as the last one, for which there must be time before the next begins
MORE = "there was no time for all of it; what is done stays, try again to go on"


class Which(msgspec.Struct, frozen=True):
    """What to mark: what `filters` match; of that, where `up_to` is given, from that event on."""

    filters: Filters = ALL
    up_to: int | None = None


NOTHING = Which()
_fields = Fields("upTo")


class MarkAll:
    """The endpoint: chunk after chunk, newest first."""

    def __init__(self, marking: OneCaller, success: Success, marks: GroupCommit) -> None:
        """Mark with what `marking` has, and give way to `marks`."""
        self._marking = marking
        self._success = success
        self._marks = marks

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Mark, and answer once all of it is committed.

        Raises:
            Unavailable: the deadline came first. What is committed stays, and is passed over when
                the caller asks again.
            HungUp: the client is gone, and no other chunk begins; what is committed stays.
        """
        limits, queries = self._marking.limits, self._marking.queries
        wish = await read(request, limits, parse_which, nothing=NOTHING)
        filters, place, organization = wish.asked.filters, (None, 0), None
        if wish.asked.up_to:
            (row,) = await self._marking.rows(request, wish, queries.place, wish.asked.up_to)
            if row["at"] is None:
                return self._success(request)
            place, organization = (row["at"], row["id"]), row["organization_id"]
        clock = asyncio.get_running_loop().time
        deadline = info(request).arrived + limits.deadline
        while True:
            started = clock()
            arguments = (*msgspec.structs.astuple(filters), *place, organization, CHUNK, SCAN)
            (row,) = await self._marking.rows(request, wish, queries.mark_all, *arguments)
            if row["at"] is None:
                return self._success(request)
            took = clock() - started
            pause = GIVE_WAY * took if self._marks.busy else 0
            if deadline - clock() < pause + MARGIN * took:
                raise Unavailable(MORE, "not all marked")
            await asyncio.sleep(pause)
            # The window and the organization stay those of the first chunk.
            filters = msgspec.structs.replace(filters, since=filters.since or row["since"])
            place, organization = (row["at"], row["id"]), row["organization_id"]


async def parse_which(body: bytes) -> Which:
    """Read the body; an empty one is as good as {}.

    Raises:
        InvalidBody: not a JSON object in UTF-8, or a field that cannot be used; the text names it.
    """
    values = await _fields.read(body)
    return Which(values.filters(), values.number("upTo", None, 1, MAX_INTEGER))
