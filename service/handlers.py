"""The endpoints. One handler each, with one SQL file each behind it."""

import asyncio

import msgspec
from aiohttp import hdrs, web

from service import resource
from service.config import Config
from service.context import ARRIVED, IDS, USER
from service.database import Database
from service.errors import (
    BodyStalled,
    BodyTooLarge,
    EncodedBody,
    InvalidBody,
    InvalidToken,
    NoOrganization,
)
from service.filters import NOTHING, parse_filters
from service.group_commit import GroupCommit
from service.ids import max_body_size, parse_ids
from service.queries import Queries

CONFIG = web.AppKey("config", Config)
READS = web.AppKey("reads", Database)
QUERIES = web.AppKey("queries", Queries)
MARK_READ = web.AppKey("mark_read", GroupCommit)
MARK_UNREAD = web.AppKey("mark_unread", GroupCommit)

SUCCESS = b'{"success":true}'


async def mark_read(request: web.Request) -> web.Response:
    """POST /systemevent/read: mark events of the caller's organization as read."""
    return await _change(request, request.app[MARK_READ])


async def mark_unread(request: web.Request) -> web.Response:
    """DELETE /systemevent/read: forget that the caller has read them."""
    return await _change(request, request.app[MARK_UNREAD])


async def _change(request: web.Request, commit: GroupCommit) -> web.Response:
    limits = request.app[CONFIG].limits
    body = await read_body(request)
    refusal: InvalidBody | None = None
    ids: list[int] = []
    try:
        ids = parse_ids(body, limits.max_ids)
        request[IDS] = len(ids)
    except InvalidBody as error:
        refusal = error  # told only to those who may ask at all
    organization = await commit.submit(request[USER], ids, request[ARRIVED] + limits.deadline)
    if organization is None:
        raise NoOrganization("user not associated with an organization")
    if refusal:
        raise refusal
    return web.Response(body=SUCCESS, content_type="application/json")


async def list_events(request: web.Request) -> web.Response:
    """POST /systemevent: the events that the caller may see, each with the caller's read state."""
    body = await read_body(request)
    refusal: InvalidBody | None = None
    filters = NOTHING
    try:
        filters = parse_filters(body)
    except InvalidBody as error:
        refusal = error
    rows = await request.app[READS].fetch(
        request.app[QUERIES].list_events,
        request[USER],
        *msgspec.structs.astuple(filters),
        deadline=request[ARRIVED] + request.app[CONFIG].limits.deadline,
    )
    if not rows:
        raise InvalidToken("user not found")
    if rows[0]["caller_organization_id"] is None:
        raise NoOrganization("user not associated with an organization")
    if refusal:
        raise refusal
    events = [dict(list(row.items())[2:]) for row in rows if row["id"] is not None]
    answer = {
        "events": events,
        "total": rows[0]["total"],
        "skip": filters.skip,
        "take": filters.take,
    }
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def openapi(_: web.Request) -> web.FileResponse:
    """GET /openapi.yaml: the contract of all endpoints."""
    return web.FileResponse(resource("openapi.yaml"), headers={"Content-Type": "application/yaml"})


async def read_body(request: web.Request) -> bytes:
    """Return the body.

    Raises:
        EncodedBody: it has a Content-Encoding; it is not read then.
        BodyTooLarge: it is longer than limits.max_ids can need.
        BodyStalled: it was not all there within limits.body_deadline.
        InvalidBody: its framing is broken.
    """
    limits = request.app[CONFIG].limits
    if hdrs.CONTENT_ENCODING in request.headers:
        raise EncodedBody("a body with a Content-Encoding is not accepted")
    if (request.content_length or 0) > max_body_size(limits.max_ids):
        raise BodyTooLarge(f"the body is too large: at most {limits.max_ids} ids in one request")
    try:
        if request.content.is_eof():  # it came with the headers
            return await request.read()
        async with asyncio.timeout_at(request[ARRIVED] + limits.body_deadline):
            return await request.read()
    except TimeoutError:
        raise BodyStalled("the body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(
            f"the body is too large: at most {limits.max_ids} ids in one request"
        ) from None
    except (web.RequestPayloadError, ValueError):
        raise InvalidBody("the body is malformed") from None
