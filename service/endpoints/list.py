"""POST /systemevent: the events that the caller may see, each with the caller's read state."""

import asyncio
from collections.abc import Sequence

import asyncpg
import msgspec
from aiohttp import web

from service.endpoints.cursor import Cursor, decode, encode
from service.endpoints.filters import ALL, Fields, Filters, refused
from service.endpoints.one_caller import OneCaller
from service.endpoints.order import Wish, read
from service.web.answers import JSON
from service.web.body import MAX_INTEGER

MAX_TAKE = 100
EVERYTHING = 2**63 - 2  # as many events as sql/list_events.sql can be asked to look at
# Events that a page after a cursor looks at, at most: some 20 ms of PostgreSQL's time. Less than a
# list's bound, since who asks for the next page loses nothing, and others have a turn in between.
PAGE_SCAN = 5_000
LONG = 2**19  # bytes of an answer that are encoded in one turn of the loop: a millisecond
# Events, and what else an answer has
Found = tuple[Sequence[asyncpg.Record], dict[str, object]]


class Part(msgspec.Struct, frozen=True):
    """Which events of a list: those of `filters`, from `skip` on or after a cursor."""

    filters: Filters = ALL
    only_unread: bool = False
    skip: int = 0
    take: int = 20
    cursor: Cursor | msgspec.UnsetType | None = msgspec.UNSET  # None: from the first on


NOTHING = Part(take=0)
_fields = Fields("showUnread", "skip", "take", "cursor")


class List:
    """The endpoint: one statement; what it looks at is bounded."""

    def __init__(self, reading: OneCaller) -> None:
        """Read with what `reading` has."""
        self._reading = reading

    async def answer(self, request: web.Request) -> web.Response:
        """Read the body, fetch the part that it asks for, and answer with it."""
        wish = await read(request, self._reading.limits, parse_part, nothing=NOTHING)
        cursor = wish.asked.cursor
        if cursor is msgspec.UNSET:
            events, rest = await self._from_skip(request, wish)
        else:
            events, rest = await self._from_cursor(request, wish, cursor)
        return web.Response(body=await _encode(events, rest), content_type=JSON)

    async def _from_skip(self, request: web.Request, wish: Wish[Part]) -> Found:
        part, limits = wish.asked, self._reading.limits
        rows = await self._reading.rows(
            request,
            wish,
            self._reading.queries.list_events,
            *(*msgspec.structs.astuple(part.filters), part.only_unread, part.skip, part.take),
            limits.max_scan or EVERYTHING,
        )
        first = rows[0]
        return [row for row in rows if row["id"] is not None], {
            "total": first["total"],
            "skip": part.skip,
            "take": part.take,
            **({"more": True, "until": first["until"]} if first["more"] else {}),
        }

    async def _from_cursor(
        self, request: web.Request, wish: Wish[Part], cursor: Cursor | None
    ) -> Found:
        part, filters = wish.asked, wish.asked.filters
        moment = cursor.moment if cursor else self._reading.moment()
        if cursor and not filters.since and not filters.until:
            filters = msgspec.structs.replace(filters, since=cursor.window_since)
        rows = await self._reading.rows(
            request,
            wish,
            self._reading.queries.page_events,
            *(*msgspec.structs.astuple(filters), part.only_unread),
            *(cursor.place if cursor else (None, 0)),
            part.take + 1,  # one more than is shown, to know whether there are more
            min(self._reading.limits.max_scan or PAGE_SCAN, PAGE_SCAN),
            after=moment if cursor else 0,
        )
        next_cursor = None
        if last := _last_looked_at(rows, part.take):
            since = rows[0]["since"] or (cursor.window_since if cursor else None)
            next_cursor = encode(since, last["at"], last["id"], moment)
        found = [row for row in rows[: part.take] if row["showUnread"] is not None]
        return found, {"take": part.take, "nextCursor": next_cursor}


async def _encode(events: Sequence[asyncpg.Record], rest: dict[str, object]) -> bytes:
    """Encode an answer, with turns of the loop in between where details are long."""
    parts, size = [], 0
    for row in events:
        # The fields of an event: columns behind the three of each statement's own.
        part = msgspec.json.encode(dict(list(row.items())[3:]))
        parts.append(part)
        size += len(part)
        if size > LONG:
            await asyncio.sleep(0)
            size = 0
    return b'{"events":[%b],%b' % (b",".join(parts), msgspec.json.encode(rest)[1:])


def _last_looked_at(rows: Sequence[asyncpg.Record], take: int) -> asyncpg.Record | None:
    """The row after which the next page begins; None where there is nothing left to look at."""
    if len(rows) > take:
        return rows[take - 1]
    return rows[-1] if rows[-1]["bound"] else None


async def parse_part(body: bytes) -> Part:
    """Read the body of a list request; an empty one is as good as {}.

    Raises:
        InvalidBody: not a JSON object in UTF-8, or a field that cannot be used; the text names it.
    """
    values = await _fields.read(body)
    part = Part(
        values.filters(),
        values.flag("showUnread"),
        values.number("skip", 0, 0, MAX_INTEGER) or 0,
        values.number("take", 20, 1, MAX_TAKE) or 0,
    )
    if "cursor" not in values:
        return part
    if part.skip:
        raise refused("skip", "not 0, beside a cursor")
    try:
        cursor = None if values["cursor"] is None else decode(values["cursor"])
    except ValueError:
        raise refused("cursor", "neither null nor the nextCursor of an answer") from None
    return msgspec.structs.replace(part, cursor=cursor)
