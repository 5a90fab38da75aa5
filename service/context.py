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


def arrive(request: web.BaseRequest) -> Context:
    """Give a request its context: the time, and the caller's X-Request-ID or one of our own."""
    request_id = request.headers.get("X-Request-ID", "")
    if not request_id or not _SANE.fullmatch(request_id):
        request_id = f"{_start}-{os.getpid():x}-{next(_counter):x}"
    request[_CONTEXT] = made = Context(request_id, asyncio.get_running_loop().time())
    return made


def context(request: web.BaseRequest) -> Context:
    """Return the context of a request."""
    try:
        return request[_CONTEXT]
    except KeyError:  # refused by aiohttp before any of our code saw it
        return arrive(request)
