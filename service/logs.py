"""Logs to standard error: one line an event, JSON or text, that no input can forge.

All of standard error goes through here, also what libraries warn of or print. Request lines have
their own module, web/request_log.py, since they do not pass through `logging`.
"""

import atexit
import functools
import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from service import config
from service.observing import (
    DatabaseAway,
    DatabaseBack,
    DatabaseLost,
    KeyFileFailed,
    KeyFileRead,
    KeySetEnded,
    KeySetFailed,
    KeySetFetched,
    KeySkipped,
    Observers,
    ReplicaLeft,
    ReplicaUsed,
)
from service.sink import Sink, fill_standard_descriptors

# How long the end of the process waits for a reader that is late, in seconds.
PATIENCE = 1.0

# What a value in text form is made of where it needs no quotes
_PLAIN = re.compile(r'[^\s"=\\]+')
_database = logging.getLogger("service.database")
_keys = logging.getLogger("service.auth")
_encoder = msgspec.json.Encoder()
_format = "json"


def set_up(logging_config: config.Logging) -> None:
    """Send all that this process has to say to standard error, in the form that is configured."""
    global _format  # noqa: PLW0603 - one process has one standard error
    fill_standard_descriptors()
    _sink()  # opened before anything can change what standard error is
    _format = logging_config.format
    if _format == "auto":
        _format = "text" if os.isatty(2) else "json"
    logging.basicConfig(level=logging_config.level.upper(), handlers=[_Handler()], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("yoyo").setLevel(logging.WARNING)
    sys.stderr = _Printed()
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(
        args.exc_type, args.exc_value, args.exc_traceback, args.err_msg
    )


def listen(observers: Observers) -> None:
    """Have a line for each event that an operator wants to know of."""
    observers.listen(
        DatabaseLost, lambda it: _database.warning("database lost: %s: %s", it.host, it.reason)
    )
    observers.listen(
        DatabaseAway,
        lambda it: _database.warning("database away for %.0f s: %s", it.seconds, it.reason),
    )
    observers.listen(
        DatabaseBack, lambda it: _database.info("database back after %.1f s", it.seconds)
    )
    observers.listen(ReplicaUsed, lambda it: _database.info("replica used: %s", it.host))
    observers.listen(
        ReplicaLeft, lambda it: _database.warning("replica left: %s: %s", it.host, it.reason)
    )
    observers.listen(KeyFileRead, lambda it: _keys.info("%s: %d keys", it.name, it.keys))
    observers.listen(
        KeyFileFailed, lambda it: _keys.error("%s; the keys before stay in force", it.reason)
    )
    observers.listen(
        KeySetFetched,
        lambda it: _keys.info("auth.jwks_url: %d keys", it.keys) if it.changed else None,
    )
    observers.listen(
        KeySetFailed,
        lambda it: _keys.warning("cannot fetch auth.jwks_url from %s: %s", it.host, it.reason),
    )
    observers.listen(
        KeySetEnded,
        lambda it: _keys.error(
            "auth.jwks_url: no fetch succeeded for %g s, its keys end", it.seconds
        ),
    )
    observers.listen(
        KeySkipped,
        lambda it: _keys.warning("auth.jwks_url: skipped a malformed key: %s", it.reason),
    )


def write(lines: Sequence[msgspec.Struct]) -> None:
    """Write lines: structs with `time`, `level` and more fields, of which None is left out.

    Their texts must be safe() already. Never waits: where nobody reads standard error, lines are
    dropped and counted, and the count is logged when there is room again.
    """
    _sink().write(_encoded(lines))


def dropped() -> int:
    """How many lines this process has dropped."""
    return _sink().dropped


@functools.cache
def _sink() -> Sink:
    sink = Sink(2, _gap)
    atexit.register(sink.flush, PATIENCE)
    return sink


def _encoded(lines: Sequence[msgspec.Struct]) -> bytes:
    if _format == "json":
        return _encoder.encode_lines(lines)
    return "".join(f"{_text(line)}\n" for line in lines).encode()


def _gap(count: int) -> bytes:
    text = f"lines dropped, since nobody read standard error: {count}"
    return _encoded([_Event(now(), "warning", text, __name__)])


def now() -> str:
    """The time as lines have it: UTC, to the millisecond."""
    second, fraction = divmod(time.time(), 1)
    return f"{_second(int(second))}.{int(fraction * 1000):03}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def safe(text: str, keep: str = "") -> str:
    """Escape what could end, hide or recolour a line, and what no encoding takes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def _text(line: msgspec.Struct) -> str:
    """A line for people: time, level, message, then name=value; quoted as in JSON where needed."""
    fields = {k: v for k, v in msgspec.structs.asdict(line).items() if v is not None}
    words = [fields.pop("time"), fields.pop("level")]
    if message := fields.pop("message", ""):
        is_plain = message.isprintable() and not re.search(r'["=\\]', message)
        words.append(message if is_plain else _quoted(message))
    for name, value in fields.items():
        word = str(value)
        words.append(f"{name}={word if _PLAIN.fullmatch(word) else _quoted(word)}")
    return " ".join(words)


def _quoted(text: str) -> str:
    return _encoder.encode(text).decode()


class _Event(msgspec.Struct, omit_defaults=True, gc=False):
    time: str
    level: str
    message: str
    logger: str
    request: str | None = None
    exception: str | None = None


class _Handler(logging.Handler):
    """Writes the records of `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _Event(
                now(),
                record.levelname.lower(),
                safe(record.getMessage().rstrip("\n"), keep="\n"),
                record.name,
                getattr(record, "request", None),
            )
            if record.exc_info:
                text = logging.Formatter().formatException(record.exc_info)
                line.exception = safe(text, keep="\n")
            write([line])
        except Exception:  # noqa: BLE001 - as in every handler: a bad record is told, not raised
            self.handleError(record)


class _Printed(io.TextIOBase):
    """Stands for sys.stderr: what is printed there becomes lines of the log."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            logging.getLogger("stderr").warning("%s", line)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def _uncaught(
    kind: type[BaseException],
    error: BaseException | None,
    traceback: object,
    message: str | None = None,
) -> None:
    """Log what nobody has caught."""
    logging.getLogger("service").error(
        message or "uncaught exception",
        exc_info=(kind, error, traceback),  # type: ignore[arg-type] # as the hooks have it
    )
