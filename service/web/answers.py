"""What answers look like: the headers of all, the shape of refusals, the 200 of a change."""

import functools
import time
from collections.abc import Mapping
from email.utils import formatdate

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from service.web.cors import Cors
from service.web.marked import Marked
from service.web.request_info import info

SECURITY_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Server": "systemevent-read",
    "X-Content-Type-Options": "nosniff",
}
JSON = "application/json"
DONE = b'{"success":true}'


async def common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer carries (a signal, so it sees those that no handler made)."""
    response.headers.update(SECURITY_HEADERS)
    response.headers["X-Request-ID"] = info(request).request_id


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The one shape of an answer that is not 2xx: {"error": message}, as JSON."""
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": message}),
        content_type=JSON,
        headers={**SECURITY_HEADERS, **(headers or {})},
    )


class Success:
    """The 200 of a change, {"success": true}.

    aiohttp composes each response anew, header by header, which takes as long as all that we do
    for a mark. This one is always the same but for its date and request id, so it is composed once,
    for no origin and for each that may call, and goes out in one piece.
    """

    def __init__(self, cors: Cors, marked: Marked | None = None) -> None:
        """Compose it for each page that may call, and for all other callers.

        Where there is a replica, `marked` are told who has marked, and have their line in it.
        """
        self._marked = marked
        self._common = _Composed(cors.headers(None), marked)
        self._for = {origin: _Composed(headers, marked) for origin, headers in cors.pages.items()}

    def __call__(self, request: web.Request) -> web.StreamResponse:
        """The answer to a request."""
        if self._marked:
            self._marked.note(info(request).user_id)
        if not request.keep_alive or request.version != HttpVersion11:
            return _ordinary(self._marked)
        if self._for:
            return self._for.get(request.headers.get(hdrs.ORIGIN, ""), self._common)
        return self._common


class _Composed(web.StreamResponse):
    """An answer to any number of HTTP/1.1 requests, on connections that stay open."""

    keep_alive = True

    def __init__(self, own: Mapping[str, str], marked: Marked | None) -> None:
        super().__init__()
        self.marked = marked
        length = str(len(DONE))
        headers = {"Content-Type": JSON, "Content-Length": length, **SECURITY_HEADERS, **own}
        fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"HTTP/1.1 200 OK\r\n{fixed}"

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write all of it."""
        date, id_ = _date(int(time.time())), info(request).request_id
        line = self.marked.line if self.marked else ""
        head = f"{self._head}Date: {date}\r\n{line}X-Request-ID: {id_}\r\n\r\n"
        writer = request.writer
        await writer.write(head.encode() + DONE)
        if request.protocol.writing_paused:  # the client does not read
            await writer.drain()
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def last(response: web.StreamResponse) -> web.StreamResponse:
    """Return the same answer, with `Connection: close`: the last one on its connection."""
    if isinstance(response, _Composed):
        response = _ordinary(response.marked)
    response.force_close()
    return response


def _ordinary(marked: Marked | None) -> web.Response:
    headers = marked.headers() if marked else None
    return web.Response(body=DONE, content_type=JSON, headers=headers)


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
