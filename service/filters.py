"""What a list of events is narrowed by: the body of POST /systemevent."""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.body import integer, parse_object
from service.config import UNSTORABLE
from service.errors import InvalidBody
from service.ids import MAX_ID

CONTEXTS = 14  # 0 workspace ... 13 conversation; sql/list_events.sql has the words
EVENTS = 3  # 0 created, 1 updated, 2 deleted
MAX_TAKE = 100
NOT_ISO = re.compile(r"\s|[.,](?!\d)")  # what fromisoformat() takes and ISO 8601 does not


class Filters(msgspec.Struct, frozen=True):
    """The parameters of sql/list_events.sql after the caller, in their order; None: any."""

    since: datetime | None = None
    until: datetime | None = None
    context_id: str | None = None
    context: int | None = None
    event: int | None = None
    user_id: str | None = None
    workspace_id: str | None = None
    only_unread: bool = False
    skip: int = 0
    take: int = 20


NOTHING = Filters(take=0)


def parse_filters(body: bytes) -> Filters:
    """Read the body of a list request; an empty one is as good as {}.

    Raises:
        InvalidBody: not a JSON object in UTF-8, or a field that cannot be used; the text names it.
    """
    values = parse_object(body) if body.strip() else {}
    since, until = _time(values, "from_timestamp"), _time(values, "to_timestamp")
    if since and until and since > until:
        raise InvalidBody("from_timestamp: later than to_timestamp")
    show_unread = values.get("showUnread")
    if not isinstance(show_unread, bool | None):
        raise InvalidBody("showUnread: not a boolean")
    return Filters(
        since,
        until,
        _text(values, "contextId"),
        _number(values, "context", None, 0, CONTEXTS - 1),
        _number(values, "event", None, 0, EVENTS - 1),
        _text(values, "userId"),
        _text(values, "workspaceId"),
        bool(show_unread),
        _number(values, "skip", 0, 0, MAX_ID) or 0,
        _number(values, "take", 20, 1, MAX_TAKE) or 0,
    )


def _text(values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidBody(f"{name}: not a string")
    if value is not None and UNSTORABLE.search(value):
        raise InvalidBody(f"{name}: holds a NUL or a lone surrogate")
    return value


def _number(
    values: dict[str, Any], name: str, default: int | None, least: int, most: int
) -> int | None:
    if values.get(name) is None:
        return default
    number = integer(values[name], least, most)
    if number is None:
        raise InvalidBody(f"{name}: not an integer from {least} to {most}")
    return number


def _time(values: dict[str, Any], name: str) -> datetime | None:
    """An ISO 8601 date-time; without an offset it is UTC."""
    value = _text(values, name)
    if value is None:
        return None
    try:
        if "T" not in value.upper() or NOT_ISO.search(value):
            raise ValueError("a date alone")  # noqa: TRY301 - told with the others below
        moment = datetime.fromisoformat(value.upper())
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidBody(f"{name}: not an ISO 8601 date-time") from None
