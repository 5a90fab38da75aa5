"""POST and DELETE /systemevent/read: mark events as read, or as unread again."""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from aiohttp import web

from service.config import Limits
from service.database.group_commit import GroupCommit
from service.endpoints.order import admit, read
from service.errors import InvalidBody
from service.turns import Rotation
from service.web.answers import Success
from service.web.body import (
    MAX_INTEGER,
    SLICE,
    Members,
    check_utf8,
    has_long_number,
    integer,
    integers,
    value,
)
from service.web.request_info import info

NOTHING: list[int] = []
SHORT = 2 * SLICE  # bytes of a body: no more than SLICE tokens
LONG = 8192  # bytes, below which a long number does not take long
REQUIRED = "Provide either id or ids; at least one valid integer id is required"


class Mark:
    """One of the two: they differ in the statement that `commit` runs."""

    def __init__(
        self,
        limits: Limits,
        commit: GroupCommit,
        success: Success,
        *,
        needs_organization: bool,
    ) -> None:
        """Answer within `limits`, with what `commit` says of the caller."""
        self._limits = limits
        self._slow = Rotation()  # bodies that take long to parse
        self._commit = commit
        self._success = success
        self._needs_organization = needs_organization

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Read the ids, submit them, and answer once they are committed."""
        asked = info(request)
        deadline = asked.arrived + self._limits.deadline
        pause = partial(self._slow.turn, asked.user_id, deadline)
        parse = partial(parse_ids, max_ids=self._limits.max_ids, pause=pause)
        wish = await read(request, self._limits, parse, nothing=NOTHING)
        asked.ids = None if wish.refusal else len(wish.asked)
        caller = await self._commit.submit(asked.user_id, wish.asked, deadline)
        admit(caller, wish, needs_organization=self._needs_organization)
        return self._success(request)


async def parse_ids(body: bytes, max_ids: int, pause: Callable[[], Awaitable[None]]) -> list[int]:
    """Return the distinct valid ids of {"id": n}, {"ids": [n, ...]}, or both, in their order.

    A valid id is an integer from 1 to 2^63-1. Other elements of `ids` are skipped, as foreign ids
    are. The usual body is read at once, and a short one; what takes longer pauses again and again,
    and lets others go on in between.

    Raises:
        InvalidBody: no valid id, more than `max_ids`, or no JSON object in UTF-8; the text says
            which.
    """
    if not body:
        raise InvalidBody(f"{REQUIRED}: the body is empty", "empty body")
    if len(body) > LONG:
        await pause()
    try:
        plain = None if len(body) > LONG and has_long_number(body) else _decode_plain(body)
    except (ValueError, RecursionError):
        plain = None
    if plain is not None and len(plain.ids) <= max_ids:
        check_utf8(body)
        if not plain.ids and 0 < plain.id <= MAX_INTEGER:
            return [plain.id]
        wanted = [plain.id, *plain.ids]
        ids = list(dict.fromkeys([id_ for id_ in wanted if 0 < id_ <= MAX_INTEGER]))
        if len(ids) > max_ids:
            raise _too_many(max_ids)
        if ids:
            return ids
    return await _parse_slowly(body, max_ids, pause if len(body) > SHORT else _go_on)


async def _go_on() -> None:
    """Pause for nobody."""


class _Plain(msgspec.Struct, gc=False):
    """A body whose numbers are all written as integers."""

    id: int = 0
    ids: list[int] = []


_decode_plain = msgspec.json.Decoder(_Plain).decode
_members = Members("id", "ids")


async def _parse_slowly(
    body: bytes, max_ids: int, pause: Callable[[], Awaitable[None]]
) -> list[int]:
    await pause()
    members = _members.read(body)
    await pause()
    ids: dict[int, None] = {}
    if id_ := integer(value(members.get("id", b"null")), 1, MAX_INTEGER):
        ids[id_] = None
    if members.get("ids", b"").startswith(b"["):
        async for id_ in integers(members["ids"], 1, MAX_INTEGER, pause):
            ids[id_] = None
            if len(ids) > max_ids:
                break
    if not ids:
        raise InvalidBody(_why_none(members), "no ids")
    if len(ids) > max_ids:
        raise _too_many(max_ids)
    return list(ids)


def _too_many(max_ids: int) -> InvalidBody:
    return InvalidBody(f"too many ids: at most {max_ids} in one request", "too many ids")


def _why_none(members: dict[str, bytes]) -> str:
    if not members:
        return f"{REQUIRED}: the body has neither"
    ids = members.get("ids", b"")
    if ids.startswith(b"[") and not ids[1:-1].strip():
        return f"{REQUIRED}: ids is empty"
    return f"{REQUIRED}: none of them is an integer from 1 to {MAX_INTEGER}"
