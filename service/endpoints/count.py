"""POST /systemevent/count: how many events the caller has not read, for the badge."""

import msgspec
from aiohttp import web

from service.endpoints.filters import ALL, parse_filters
from service.endpoints.one_caller import OneCaller
from service.endpoints.order import read
from service.web.answers import JSON


class Count:
    """The endpoint: one statement, of the newest limits.max_count events in the window."""

    def __init__(self, reading: OneCaller) -> None:
        """Read with what `reading` has."""
        self._reading = reading

    async def answer(self, request: web.Request) -> web.Response:
        """Read the filters as a list does, and count; showUnread, skip and take do not matter."""
        limits, query = self._reading.limits, self._reading.queries.count_unread
        wish = await read(request, limits, parse_filters, nothing=ALL)
        filters = msgspec.structs.astuple(wish.asked)
        (row,) = await self._reading.rows(request, wish, query, *filters, limits.max_count)
        answer = {"count": row["count"], "more": row["more"]}
        return web.Response(body=msgspec.json.encode(answer), content_type=JSON)
