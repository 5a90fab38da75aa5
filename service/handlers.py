"""The endpoints. One handler each, with one SQL file each behind it."""

import msgspec
from aiohttp import web

from service import resource
from service.answers import JSON, Success
from service.body import read_body
from service.config import Config
from service.context import context
from service.database import Database
from service.errors import InvalidBody, InvalidToken, NoOrganization
from service.filters import NOTHING, parse_filters
from service.group_commit import GroupCommit
from service.ids import parse_ids
from service.queries import Queries

CONFIG = web.AppKey("config", Config)
READS = web.AppKey("reads", Database)
QUERIES = web.AppKey("queries", Queries)
SUCCESS = web.AppKey("success", Success)
MARK_READ = web.AppKey("mark_read", GroupCommit)
MARK_UNREAD = web.AppKey("mark_unread", GroupCommit)

OPENAPI = resource("openapi.yaml").read_bytes()


async def mark_read(request: web.Request) -> web.StreamResponse:
    """POST /systemevent/read: mark events of the caller's organization as read."""
    return await _change(request, request.app[MARK_READ])


async def mark_unread(request: web.Request) -> web.StreamResponse:
    """DELETE /systemevent/read: forget that the caller has read them."""
    return await _change(request, request.app[MARK_UNREAD])


async def _change(request: web.Request, commit: GroupCommit) -> web.StreamResponse:
    app, asked = request.app, context(request)
    limits = app[CONFIG].limits
    body = await read_body(request, limits)
    refusal: InvalidBody | None = None
    ids: list[int] = []
    try:
        ids = parse_ids(body, limits.max_ids)
        asked.ids = len(ids)
    except InvalidBody as error:
        refusal = error
    organization = await commit.submit(asked.user_id, ids, asked.arrived + limits.deadline)
    _admit(organization, refusal)
    return app[SUCCESS](request)


async def list_events(request: web.Request) -> web.Response:
    """POST /systemevent: the events that the caller may see, each with the caller's read state."""
    app, asked = request.app, context(request)
    limits = app[CONFIG].limits
    body = await read_body(request, limits)
    refusal: InvalidBody | None = None
    filters = NOTHING
    try:
        filters = parse_filters(body)
    except InvalidBody as error:
        refusal = error
    rows = await app[READS].fetch(
        app[QUERIES].list_events,
        asked.user_id,
        *msgspec.structs.astuple(filters),
        deadline=asked.arrived + limits.deadline,
    )
    if not rows:
        raise InvalidToken("user not found")
    _admit(rows[0]["caller_organization_id"], refusal)
    events = [dict(list(row.items())[2:]) for row in rows if row["id"] is not None]
    answer = {
        "events": events,
        "total": rows[0]["total"],
        "skip": filters.skip,
        "take": filters.take,
    }
    return web.Response(body=msgspec.json.encode(answer), content_type=JSON)


def _admit(organization: str | None, refusal: InvalidBody | None) -> None:
    """Refuse a user who exists, in the contract's order: who they are, then what they said."""
    if organization is None:
        raise NoOrganization("user not associated with an organization")
    if refusal:
        raise refusal


async def openapi(_: web.Request) -> web.Response:
    """GET /openapi.yaml: the contract of all endpoints."""
    return web.Response(body=OPENAPI, content_type="application/yaml")
