"""What a request carries on its way through the service."""

import itertools
import os
import re
import secrets

from aiohttp import web

ARRIVED = web.RequestKey("arrived", float)  # loop time; deadlines count from here
USER = web.RequestKey("user", str)  # who asks, once the token is verified
IDS = web.RequestKey("ids", int)  # how many valid ids were asked for
_REQUEST_ID = web.RequestKey("request_id", str)

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_start = secrets.token_hex(4)
_counter = itertools.count()


def request_id(request: web.BaseRequest) -> str:
    """Return the caller's X-Request-ID where it is sane, else one of our own."""
    try:
        return request[_REQUEST_ID]
    except KeyError:
        given = request.headers.get("X-Request-ID", "")
        known = given if _SANE.fullmatch(given) else f"{_start}-{os.getpid():x}-{next(_counter):x}"
        request[_REQUEST_ID] = known
        return known
