"""What answers look like: the headers of all, the shape of refusals, the 200 of a change."""

import functools
import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from service.context import context

SECURITY_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Server": "systemevent-read",
    "X-Content-Type-Options": "nosniff",
}
# What a page of another origin may read of an answer, beside its body
EXPOSED_HEADERS = ("Retry-After", "WWW-Authenticate", "X-Request-ID")
JSON = "application/json"
DONE = b'{"success":true}'


async def common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer carries (a signal, so it sees those that no handler made)."""
    response.headers.update(SECURITY_HEADERS)
    response.headers["X-Request-ID"] = context(request).request_id


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

    def __init__(self, origins: Sequence[str]) -> None:
        """Compose it for pages of these `origins` (Fetch, section 3.2.3), and for all others."""
        common = {
            "Content-Type": JSON,
            "Content-Length": str(len(DONE)),
            **SECURITY_HEADERS,
            **({"Vary": "Origin"} if origins else {}),
        }
        exposed = ",".join(EXPOSED_HEADERS)
        self._common = _Composed(common)
        self._for = {
            origin: _Composed(
                {
                    **common,
                    "Access-Control-Allow-Origin": origin,
                    "Access-Control-Expose-Headers": exposed,
                }
            )
            for origin in origins
        }

    def __call__(self, request: web.Request) -> web.StreamResponse:
        """The answer to a request."""
        if not request.keep_alive or request.version != HttpVersion11:
            return web.Response(body=DONE, content_type=JSON)
        if self._for:
            return self._for.get(request.headers.get(hdrs.ORIGIN, ""), self._common)
        return self._common


class _Composed(web.StreamResponse):
    """An answer to any number of HTTP/1.1 requests, on connections that stay open."""

    keep_alive = True

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__()
        fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"HTTP/1.1 200 OK\r\n{fixed}"

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write all of it."""
        date, id_ = _date(int(time.time())), context(request).request_id
        head = f"{self._head}Date: {date}\r\nX-Request-ID: {id_}\r\n\r\n"
        await request.writer.write(head.encode() + DONE)
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
