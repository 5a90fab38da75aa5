"""HTTP below the application: what aiohttp answers by itself, in our shape."""

from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from service.answers import error_response
from service.logs import RequestLog
from service.middlewares import http_error

# What a client still sends after its answer is read and dropped for this long, in seconds, so that
# the answer arrives; a connection closed with unread data is reset.
LINGERING_TIME = 2.0


class _Connection(web.RequestHandler):
    def data_received(self, data: bytes) -> None:
        """Tell a handler that waits for its body when the framing of it breaks."""
        super().data_received(data)
        request = self._current_request
        if request is None or not self._messages or request.content.is_eof():
            return
        if isinstance(self._messages[-1][0], _ErrInfo):
            request.content.set_exception(web.RequestPayloadError("malformed body"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - may repeat what was sent
    ) -> web.StreamResponse:
        """Answer what is not HTTP, without a traceback in the log for each."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is already on its way")
        if status == HTTPStatus.BAD_REQUEST:
            text = "malformed request"
        else:
            self.log_exception("internal error", exc_info=exc)
            text = "internal server error"
        response = error_response(status, text)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Shape what was refused before the middlewares: an Expect that we cannot meet."""
        if isinstance(resp, web.HTTPException):
            resp = http_error(resp)
        return await super().finish_response(request, resp, start_time)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application, with connections of ours."""

    def __init__(self, app: web.Application, *, keepalive: float, shutdown_timeout: float) -> None:
        """Serve `app`; times in seconds."""
        super().__init__(
            app,
            access_log_class=RequestLog,
            # A compressed body is refused, so it must not be inflated on the way.
            auto_decompress=False,
            keepalive_timeout=keepalive,
            lingering_time=LINGERING_TIME,
            shutdown_timeout=shutdown_timeout,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            loop=made._loop,  # noqa: SLF001 - aiohttp has no hook for the class of a connection
            **made._kwargs,  # noqa: SLF001
        )
