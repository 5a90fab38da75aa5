"""HTTP below the application: the one runner for every port, with connections of ours."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from yarl import URL

from service.web.connection import ClientConnection
from service.web.terms import Terms

# What a client still sends after its answer is read and dropped for this long, in seconds, so that
# the answer arrives; a connection closed with unread data is reset.
LINGERING_TIME = 2.0
BACKLOG = 1024  # connections that wait to be accepted; the system may allow fewer
# aiohttp looks for a route at each slash of a path, in time by the square of their number.
LONG = 256  # characters of a path and its query, below which that does not take long
SLASHES = 16  # more than any route has
NOWHERE = URL("/nowhere")


class _Server(web.Server):
    """Makes a connection of ours for each client."""

    def __init__(self, made: web.Server, terms: Terms, options: dict[str, Any]) -> None:
        super().__init__(made.request_handler, request_factory=self._request)
        self._make = made.request_factory
        self._terms = terms
        self._options = options

    def _request(
        self,
        message: RawRequestMessage,
        body: StreamReader,
        connection: Any,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        connection.begin(message, body)
        if len(message.path) > LONG and message.url.raw_path.count("/") > SLASHES:
            message = message._replace(url=NOWHERE)
        return self._make(message, body, connection, writer, task)

    def __call__(self) -> web.RequestHandler:
        return ClientConnection(self, self._terms, **self._options)


class Runner(web.AppRunner):
    """Serves an application, with connections of ours."""

    def __init__(
        self,
        app: web.Application,
        terms: Terms,
        *,
        keepalive: float,
        shutdown_timeout: float,
    ) -> None:
        """Serve `app` on these terms; times in seconds."""
        super().__init__(app)
        self._patience = shutdown_timeout
        self._ours: _Server | None = None
        self._terms = terms
        self._options = {
            "access_log": None,  # requests are told to the observers
            # A compressed body is refused, so it must not be inflated on the way.
            "auto_decompress": False,
            "keepalive_timeout": keepalive,
            "lingering_time": LINGERING_TIME,
            "max_field_size": terms.max_header_size,
            "max_line_size": terms.max_header_size,
        }

    @property
    def closing(self) -> bool:
        """Whether each answer ends its connection, and says so."""
        return self._terms.closing

    @closing.setter
    def closing(self, value: bool) -> None:
        self._terms.closing = value

    async def setup(self) -> None:
        """Start the application; aiohttp's own server is only asked how it makes requests."""
        await super().setup()
        made = super().server
        assert made is not None  # noqa: S101 - setup() has made it
        self._ours = _Server(made, self._terms, self._options)

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that belong to the caller, who may go on with them afterwards."""
        for one in sockets:
            await web.SockSite(self, one.dup(), backlog=BACKLOG).start()

    async def stop_listening(self) -> None:
        """Let nobody new in; the connections stay."""
        for site in self.sites:
            await site.stop()

    async def run_dry(self, seconds: float) -> None:
        """Wait until no connection is left, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._ours and self._ours.connections:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)

    @property
    def server(self) -> web.Server | None:
        """What takes connections, once set up."""
        return self._ours

    async def shutdown(self) -> None:
        """Finish requests and close connections; cleanup() calls this once nobody listens."""
        assert self._ours is not None  # noqa: S101 - cleanup() asks for it only then
        self._ours.pre_shutdown()
        await super().shutdown()
        await self._ours.shutdown(self._patience)
