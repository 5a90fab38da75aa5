"""The order of refusals, once for all endpoints: who you are comes before what you said.

A bad token is refused before the handler runs (401). The handler reads the body, and keeps what is
wrong with it for later: the database says first whether the user exists (401) and has an
organization (403; not for DELETE), and only then the body is refused (400). What cannot even be
read (408, 413, 415) is refused at once.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
from aiohttp import web

from service.config import Limits
from service.database.group_commit import Row
from service.errors import InvalidBody, InvalidToken, NoOrganization
from service.web.body import read_body

Asked = TypeVar("Asked")


class Wish(msgspec.Struct, Generic[Asked]):
    """What a body asks for, and why it is refused, if it is."""

    asked: Asked
    refusal: InvalidBody | None = None


async def read(
    request: web.Request, limits: Limits, parse: Callable[[bytes], Awaitable[Asked]], nothing: Asked
) -> Wish[Asked]:
    """Read and parse the body; one that is refused asks for `nothing`.

    Raises:
        Refusal: the body cannot be read: see read_body().
    """
    body = await read_body(request, limits)
    try:
        return Wish(await parse(body))
    except InvalidBody as refusal:
        return Wish(nothing, refusal)


def admit(caller: Row | None, wish: Wish[Asked], *, needs_organization: bool = True) -> None:
    """Refuse in the contract's order, once the database has said who the caller is.

    Args:
        caller: a row with the caller's organization_id; None where there is no such user.
        wish: what the body asked for.
        needs_organization: whether the call asks for one.

    Raises:
        InvalidToken: the user does not exist.
        NoOrganization: the user belongs to none.
        InvalidBody: what was kept when the body was read.
    """
    if caller is None:
        raise InvalidToken("user not found", "unknown user")
    if needs_organization and caller["organization_id"] is None:
        raise NoOrganization("user not associated with an organization")
    if wish.refusal:
        raise wish.refusal
