"""One connection of a client: what aiohttp answers by itself, in our shape; and its end."""

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from service.web.answers import error_response, last
from service.web.intake import PORTION, portion
from service.web.middlewares import http_error
from service.web.request_info import answered, info
from service.web.terms import Terms

if TYPE_CHECKING:
    from aiohttp.web_server import Server

# How slowly a client may take its answers, in bytes a second
SLOWEST = 16_384
_ORIGIN = re.compile(rb"\r\nOrigin:[ \t]*([!-~]+)[ \t]*\r\n", re.IGNORECASE)


class ClientConnection(web.RequestHandler):
    """One connection of a client.

    aiohttp bounds what a client may send ahead, and waits with the next request while the answers
    to those before it are not taken. The deadline for that is ours.

    Private names of aiohttp are used here alone, each for a reason:

    * `_messages`: what the parser has made of a read, to see at once that it is not HTTP, or that a
      body in chunks begins. A handler learns of that later, or never.
    * `_pause_transport_reading` and `_resume_transport_reading`: nothing more is read while a part
      of the last read is not parsed, also where aiohttp would read on. The public pair stands for a
      body that is not taken.
    * `_reading_paused` and `_buffer_paused`: whether aiohttp waits itself; then nothing is parsed.
      `_pause_reading_for_buffer`, beside the public one: whether it ever has.
    * `_max_msg_queue_size`: at how many requests it waits, which has to be before its parser does.
    * `_message_tail`: what came with an Upgrade, which would be parsed all at once.
    """

    def __init__(self, server: "Server", terms: Terms, **options: Any) -> None:
        """Serve one client of `server`; aiohttp has the options."""
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._terms = terms
        self.caller = ""  # of the last request that was answered, where its token was good
        self._body: StreamReader | None = None  # of the request that is being handled
        self._last = False  # whether the request that is being handled is the last one here
        self._origin: str | None = None  # of a request that is not HTTP
        self._written: asyncio.Transport | None = None  # where answers go, until it is closed
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False  # whether nothing is written any more
        self._broken = False  # whether what came last is not HTTP
        self._unparsed = bytearray()  # read, but not parsed yet
        self._chunked = False  # whether the body that comes is in chunks
        self._has_turn = False  # whether it waits for a turn in which to parse
        self._was_paused = False  # whether reading ever was
        self._is_over = False  # whether the last request is answered: what comes is dropped
        # The parser stops by a count of its own, which is one ahead where a body came after its
        # head: what it keeps then would wait for the next read.
        self._max_msg_queue_size -= 1

    def begin(self, message: RawRequestMessage, body: StreamReader) -> None:
        """Note the request that is handled next.

        The parser keeps what it read behind such a request and takes it for a part of the next one:
        trailers for headers, or the body of a CONNECT for a request. So there is no next one.
        """
        self._terms.idle.pop(self, None)
        self._body = body
        if not body.is_eof():
            self._terms.late[self] = None
        headers = message.headers
        self._last = (
            message.chunked or hdrs.UPGRADE in headers or message.method == hdrs.METH_CONNECT
        )

    def log_access(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        time: float | None,
    ) -> None:
        """Tell of a request that is answered."""
        self._terms.observers.tell(answered(request, response))

    def data_received(self, data: bytes) -> None:
        """Parse what was read: at once, except long reads and bodies in chunks.

        The parser makes some calls for each chunk, and 256 KB may hold 40,000 of them.
        """
        if self._is_over:
            return
        if data and (self._chunked or self._unparsed or len(data) > PORTION):
            self._set_aside(data)
        elif not self._broken:
            super().data_received(data)
            if self._messages:
                self._look(data)

    def _set_aside(self, data: bytes) -> None:
        """Parse a portion now, or when it is this client's turn."""
        self._unparsed += data
        if self._chunked:
            self._wait_for_turn()
        else:
            self._parse_more()
        if self._unparsed:
            self._pause_transport_reading()

    def _wait_for_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._terms.chunks.add(self, self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        self._parse_more()

    def _parse_more(self) -> None:
        """Parse while aiohttp takes it, and until a body in chunks begins: those take turns."""
        while self._unparsed and not (self._reading_paused or self._buffer_paused):
            data = portion(self._unparsed)
            super().data_received(data)
            if self._messages:
                self._look(data)
            if self._chunked:
                break
        if self._unparsed:
            self._pause_transport_reading()
        if not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def pause_reading(self) -> None:
        """Wait until more of a body is read."""
        self._was_paused = True
        super().pause_reading()

    def _pause_reading_for_buffer(self) -> None:
        """Wait until more requests are answered."""
        self._was_paused = True
        super()._pause_reading_for_buffer()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """Read on. aiohttp asks for that twice a request, though short bodies pause nothing.

        Once something has paused it, what the parser keeps may be more than the flags say.
        """
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _resume_transport_reading(self) -> None:
        """Read on, once what was read is parsed."""
        if self._unparsed:
            self._wait_for_turn()
        elif not self._broken:
            super()._resume_transport_reading()

    def _look(self, data: bytes) -> None:
        """Look at the last request in `data`: is its body in chunks, and is it HTTP at all?

        aiohttp queues an error for each read of what is not, with a copy of it. It queues it behind
        the request whose body is broken, and does not tell the body: its handler would wait for the
        deadline, and answer 408.
        """
        message = self._messages[-1][0]
        if isinstance(message, RawRequestMessage):
            self._chunked = message.chunked
            return
        self._broken = True
        self._unparsed.clear()
        self._pause_transport_reading()
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("malformed body"))
            self._body.feed_eof()  # or aiohttp would read the rest of it, and log the exception
        if found := _ORIGIN.search(data):
            self._origin = found[1].decode()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, without a traceback in the log for each."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is already on its way")
        if isinstance(exc, LineTooLong):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            text = f"a header is too long: at most {self._terms.max_header_size} bytes"
        elif status == HTTPStatus.BAD_REQUEST:
            text = "malformed request"
        else:
            self.log_exception("internal error", exc_info=exc)
            text = "internal server error"
        origin = request.headers.get(hdrs.ORIGIN, self._origin)
        headers = {"X-Request-ID": info(request).request_id, **self._terms.cors.headers(origin)}
        response = error_response(status, text, headers)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Shape what was refused before the middlewares, an Expect that we cannot meet; and write.

        Of the last request of a connection the answer says so.
        """
        self._body = None  # nobody waits for it any more
        self._terms.late.pop(self, None)
        self.caller = info(request).user_id
        if self._last:
            self._message_tail = b""  # aiohttp would parse it, all at once
        if isinstance(resp, web.HTTPException):
            resp = http_error(resp)
        if self._last or self._terms.closing:
            resp = last(resp)
        finished = await super().finish_response(request, resp, start_time)
        if self._last:  # what is left of its body, and behind it, is not worth parsing
            self._is_over = True
            self._unparsed.clear()
        if self._written is not None:
            self._terms.idle[self] = None
        return finished

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, which aiohttp forgets before all is written.

        A process without descriptors could accept nobody. So where there are as many connections as
        there may be, one is closed: the one that has been idle for the longest, or has been
        sending its request for the longest.
        """
        self._written = cast("asyncio.Transport", transport)  # as aiohttp does
        terms = self._terms
        terms.open += 1
        if terms.open > terms.most:
            terms.close_one()
        terms.idle[self] = None
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Begin to wait for the client: it takes less than we write."""
        super().pause_writing()
        self._set_deadline()
        if self._written is not None:
            self._terms.untaken[self] = self._written.get_write_buffer_size()
            self._terms.make_room()

    def resume_writing(self) -> None:
        """End the wait, unless there will be no other."""
        super().resume_writing()
        self._terms.untaken.pop(self, None)
        if not self._ended:
            self._drop_deadline()

    async def start(self) -> None:
        """Serve the client until its last request; what is written then has a deadline, too."""
        try:
            await super().start()
        finally:
            self._ended = True
            self._set_deadline()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End every wait."""
        self._terms.open -= 1
        self._terms.idle.pop(self, None)
        self._terms.late.pop(self, None)
        self._terms.untaken.pop(self, None)
        self._written = None
        self._unparsed.clear()
        self._drop_deadline()
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: there is no request, or not all of it."""
        return self._body is None or not self._body.is_eof()

    def cut_off(self) -> None:
        """End the connection, whatever is still to be written."""
        self._terms.untaken.pop(self, None)
        if self._written is not None:
            self._written.abort()

    def _set_deadline(self) -> None:
        self._drop_deadline()
        if (transport := self._written) is not None:
            seconds = self._terms.write_deadline + transport.get_write_buffer_size() / SLOWEST
            self._deadline = asyncio.get_running_loop().call_later(seconds, transport.abort)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
