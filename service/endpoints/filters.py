"""What lists, counts and mark-all are asked with: the filters in a body, each checked by name."""

import asyncio
import re
from datetime import UTC, datetime

import msgspec

from service.config import UNSTORABLE
from service.errors import InvalidBody
from service.web.body import Members, integer, value

# Contexts and events without a word too: what is listed can be filtered (contract, section 3).
SMALLINT = (-(2**15), 2**15 - 1)
LONGEST_TIME = 1000  # characters; a fraction may have more digits than are of use
LONG = 10_000  # bytes of a body, after which the loop has its turn
NOT_ISO = re.compile(r"\s|[.,](?!\d)")  # what fromisoformat() takes and ISO 8601 does not


class Filters(msgspec.Struct, frozen=True):
    """Parameters $3 to $9 of the statements, in their order; None: any."""

    since: datetime | None = None
    until: datetime | None = None
    context_id: str | None = None
    context: int | None = None
    event: int | None = None
    user_id: str | None = None
    workspace_id: str | None = None


ALL = Filters()


class Fields:
    """The filters in a body, and some fields more."""

    def __init__(self, *more: str) -> None:
        """Read `more` beside the filters."""
        self._members = Members(
            "from_timestamp",
            "to_timestamp",
            "contextId",
            "context",
            "event",
            "userId",
            "workspaceId",
            *more,
        )

    async def read(self, body: bytes) -> "Values":
        """Read a body; an empty one is as good as {}.

        Raises:
            InvalidBody: not a JSON object in UTF-8.
        """
        members = self._members.read(body) if body.strip() else {}
        if len(body) > LONG:
            await asyncio.sleep(0)
        return Values({name: value(text) for name, text in members.items()})


class Values(dict[str, object]):
    """Fields of a body, decoded; what is null or missing is None or the default.

    Each method raises InvalidBody where a field cannot be used; the text names it.
    """

    def filters(self) -> Filters:
        """All of them."""
        since, until = self._time("from_timestamp"), self._time("to_timestamp")
        if since and until and since > until:
            raise refused("from_timestamp", "later than to_timestamp")
        return Filters(
            since,
            until,
            self._text("contextId"),
            self.number("context", None, *SMALLINT),
            self.number("event", None, *SMALLINT),
            self._text("userId"),
            self._text("workspaceId"),
        )

    def flag(self, name: str) -> bool:
        """A boolean."""
        flag = self.get(name)
        if not isinstance(flag, bool | None):
            raise refused(name, "not a boolean")
        return bool(flag)

    def number(self, name: str, default: int | None, least: int, most: int) -> int | None:
        """An integer in least..most."""
        if self.get(name) is None:
            return default
        number = integer(self[name], least, most)
        if number is None:
            raise refused(name, f"not an integer from {least} to {most}")
        return number

    def _text(self, name: str) -> str | None:
        text = self.get(name)
        if text is not None and not isinstance(text, str):
            raise refused(name, "not a string")
        if text is not None and UNSTORABLE.search(text):
            raise refused(name, "holds a NUL or a lone surrogate")
        return text

    def _time(self, name: str) -> datetime | None:
        """An ISO 8601 date-time; without an offset it is UTC."""
        text = self._text(name)
        if text is None:
            return None
        try:
            if len(text) > LONGEST_TIME or "T" not in text.upper() or NOT_ISO.search(text):
                raise ValueError("no date-time")
            moment = datetime.fromisoformat(text.upper())
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (ValueError, OverflowError):
            raise refused(name, "not an ISO 8601 date-time") from None


def refused(name: str, why: str) -> InvalidBody:
    """A field that cannot be used."""
    return InvalidBody(f"{name}: {why}", f"filter {name}")


_only_filters = Fields()


async def parse_filters(body: bytes) -> Filters:
    """Read the filters, and nothing else of a body.

    Raises:
        InvalidBody: not a JSON object in UTF-8, or a filter that cannot be used.
    """
    return (await _only_filters.read(body)).filters()
