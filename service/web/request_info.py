"""What a request carries on its way through the service, and what is told of it in the end."""

import asyncio
import itertools
import os
import re
import secrets
from collections.abc import Sequence

import msgspec
from aiohttp import web
from multidict import istr

# Made once: to look up text costs twice as much, since its letter case has to be folded.
_REQUEST_ID, _TRACEPARENT = istr("X-Request-ID"), istr("traceparent")
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
# W3C Trace Context, section 3.2: version, trace id, span id, flags; later versions may have more.
_TRACE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_counter = itertools.count()
_prefix = ""  # of the ids that this process gives


def _name_process() -> None:
    global _prefix  # noqa: PLW0603 - to ask for the process id is a system call
    _prefix = f"{secrets.token_hex(4)}-{os.getpid():x}"


_name_process()
os.register_at_fork(after_in_child=_name_process)


class RequestInfo(msgspec.Struct, gc=False):
    """What is known of a request. It is told to the observers once, when it is answered."""

    request_id: str
    arrived: float  # loop time; deadlines count from here
    user_id: str = ""  # who asks, once the token is verified
    ids: int | None = None  # how many valid ids were asked for
    cause: str | None = None  # of a refusal: which rule was broken, see errors.Refusal
    trace: tuple[str, str] | None = None  # trace id and span id of the caller
    # Known when it is answered:
    method: str = ""
    path: str = ""  # as it was sent, without the query
    status: int = 0
    seconds: float = 0.0  # from its arrival to its answer


_INFO = web.RequestKey("info", RequestInfo)


def arrive(request: web.BaseRequest) -> RequestInfo:
    """Give a request its info: the time, and the caller's X-Request-ID or one of our own."""
    headers = request.headers
    request_id = headers.get(_REQUEST_ID, "")
    if not request_id or not _SANE.fullmatch(request_id):
        request_id = f"{_prefix}-{next(_counter):x}"
    request[_INFO] = made = RequestInfo(request_id, asyncio.get_running_loop().time())
    if _TRACEPARENT in headers:
        made.trace = _trace(headers.getall(_TRACEPARENT))
    return made


def _trace(values: Sequence[str]) -> tuple[str, str] | None:
    """The ids in a traceparent; None where it is not valid (section 3.2.2), or not the only one."""
    match = _TRACE.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    is_zero = not trace_id.strip("0") or not span_id.strip("0")
    if version == "ff" or (version == "00" and more) or is_zero:
        return None
    return trace_id, span_id


def info(request: web.BaseRequest) -> RequestInfo:
    """Return what is known of a request."""
    try:
        return request[_INFO]
    except KeyError:  # refused by aiohttp before any of our code saw it
        return arrive(request)


def answered(request: web.BaseRequest, response: web.StreamResponse) -> RequestInfo:
    """Fill in what is known of a request when it is answered, and return all of it."""
    told = info(request)
    told.method = request.method
    told.path = request.raw_path.partition("?")[0]
    told.status = response.status
    told.seconds = asyncio.get_running_loop().time() - told.arrived
    return told
