"""The log's line for each request: a listener that writes many at once.

Lines are gathered while the loop is busy and encoded together before it waits again. One by one,
through `logging`, they would cost more than a tenth of a request.
"""

import asyncio

import msgspec

from service import logs
from service.web.request_info import RequestInfo

MAX_LOGGED = 200  # characters of a path or user id


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    time: str
    level: str
    method: str
    path: str
    status: int
    ms: float
    request: str
    user: str | None = None
    ids: int | None = None
    cause: str | None = None
    trace_id: str | None = None
    span_id: str | None = None


class RequestLog:
    """Listens to RequestInfo."""

    def __init__(self) -> None:
        """Start with nothing to write."""
        self._lines: list[_Line] = []
        self._moment = ""  # of all lines that are written together

    def __call__(self, told: RequestInfo) -> None:
        """Note a request; it is written before the loop waits again."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
            self._moment = logs.now()
        line = _Line(
            self._moment,
            "info",
            told.method,
            logs.safe(told.path[:MAX_LOGGED]),
            told.status,
            round(told.seconds * 1000, 1),
            told.request_id,
            logs.safe(told.user_id[:MAX_LOGGED]) or None,
            told.ids,
            told.cause,
        )
        if told.trace:
            line.trace_id, line.span_id = told.trace
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        logs.write(lines)
