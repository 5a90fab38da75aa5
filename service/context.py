"""What a request carries on its way through the service."""

import asyncio
import itertools
import os
import re
import secrets
from dataclasses import dataclass

from aiohttp import web

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_start = secrets.token_hex(4)
_counter = itertools.count()


@dataclass(slots=True)
class Context:
    """What is known of a request."""

    request_id: str
    arrived: float  # loop time; deadlines count from here
    user_id: str = ""  # who asks, once the token is verified
    ids: int | None = None  # how many valid ids were asked for


_CONTEXT = web.RequestKey("context", Context)


def context(request: web.BaseRequest) -> Context:
    """Return the context of a request, made when it is first asked for."""
    try:
        return request[_CONTEXT]
    except KeyError:
        made = Context(_request_id(request), asyncio.get_running_loop().time())
        request[_CONTEXT] = made
        return made


def _request_id(request: web.BaseRequest) -> str:
    """The caller's X-Request-ID where it is sane, else one of our own."""
    given = request.headers.get("X-Request-ID", "")
    return given if _SANE.fullmatch(given) else f"{_start}-{os.getpid():x}-{next(_counter):x}"
