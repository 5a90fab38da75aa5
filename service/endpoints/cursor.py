"""Cursors: where a page of a list ended. Clients hand them back, and need not understand them.

A cursor proves nothing and grants nothing: it says where to go on, in whatever the caller may see.
"""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# What Python can hold as a time, and PostgreSQL (in its manual, "Date/Time Types").
Since = Annotated[int, Meta(ge=0, le=253_402_300_799_999_999)]
At = Annotated[int, Meta(ge=-210_866_803_200_000_000, le=2**63 - 1)]
Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Moment = Annotated[int, Meta(ge=0, le=10**15)]
TEXT = re.compile(r"[A-Za-z0-9_-]{1,120}")


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A place in a list, and the window that its first page fixed; times in us since 1970."""

    since: Since | None  # when the window begins, where the body says nothing of it
    at: At  # the time of the last event that was looked at,
    id: Id  # and its id
    # Seconds since 1970, or 0: by when all is committed that the first page could show. The others
    # must not miss it, though a replica may be behind.
    moment: Moment = 0

    @property
    def window_since(self) -> datetime | None:
        """When the window begins."""
        return None if self.since is None else EPOCH + self.since * MICROSECOND

    @property
    def place(self) -> tuple[timedelta, int]:
        """Time since 1970, and id."""
        return self.at * MICROSECOND, self.id


_decode = msgspec.json.Decoder(Cursor).decode


def encode(since: datetime | None, at: timedelta, event_id: int, moment: int = 0) -> str:
    """Make a cursor of the start of the window, a place as `Cursor.place` has it, and a moment."""
    start = None if since is None else (since - EPOCH) // MICROSECOND
    return _encode(Cursor(start, at // MICROSECOND, event_id, moment))


def _encode(cursor: Cursor) -> str:
    fields = msgspec.structs.astuple(cursor)
    json = msgspec.json.encode(fields if cursor.moment else fields[:-1])
    return base64.urlsafe_b64encode(json).rstrip(b"=").decode()


def decode(text: object) -> Cursor:
    """Read a cursor.

    Raises:
        ValueError: it is none that encode() makes.
    """
    if not isinstance(text, str) or not TEXT.fullmatch(text):
        raise ValueError("no text of a cursor")
    cursor = _decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if _encode(cursor) != text:
        raise ValueError("another spelling of a cursor")
    return cursor
