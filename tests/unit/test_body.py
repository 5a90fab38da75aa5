"""Bodies: when reading one is given up, and what half of a pair beside a filter means."""

import asyncio

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from service.config import Limits
from service.endpoints.list import parse_part
from service.errors import BodyStalled, InvalidBody
from service.web.body import read_body
from service.web.request_info import arrive

LIMITS = Limits(deadline=10, body_deadline=5)


def waited(seconds: float) -> tuple[web.Request, StreamReader]:
    """A request that arrived some time ago, and its body, which has not."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    body = StreamReader(protocol, 2**16, loop=loop)
    request = make_mocked_request("POST", "/systemevent/read", payload=body)
    arrive(request).arrived = loop.time() - seconds
    return request, body


async def test_the_deadline_of_a_body_begins_when_it_is_read() -> None:
    """A request may have waited for its turn before; that is no fault of the sender."""
    request, body = waited(LIMITS.body_deadline + 1)
    reading = asyncio.create_task(read_body(request, LIMITS))
    await asyncio.sleep(0)
    body.feed_data(b"{}")
    body.feed_eof()
    assert await reading == b"{}"


async def test_a_body_never_takes_longer_than_its_request() -> None:
    """Whatever is left of its own deadline."""
    request, _ = waited(LIMITS.deadline + 1)
    with pytest.raises(BodyStalled):
        await read_body(request, LIMITS)


LONE = rb'"x": "\ud800", '


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\uD83D\uDE00", "\U0001f600"),
        (rb"\\ud800", r"\ud800"),
        (rb"\u1234\u2345", "\u1234\u2345"),
        (rb"\ud7ff", "\ud7ff"),
    ],
)
async def test_half_of_a_pair_elsewhere_changes_no_filter(text: bytes, found: str) -> None:
    """It is JSON, and what is asked for is read as it is."""
    body = b'{%s"contextId": "%s"}'
    assert (await parse_part(body % (LONE, text))).filters.context_id == found
    assert (await parse_part(body % (b"", text))).filters.context_id == found


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (rb'{"contextId": "\ud800"}', "filter contextId"),
        (b'{"take": 0}', "filter take"),
        (b'{"showUnread": 1}', "filter showUnread"),
        (b'{"from_timestamp": "5"}', "filter from_timestamp"),
        (b"[]", "not an object"),
        (b"[", "not JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
async def test_a_refusal_has_its_cause(body: bytes, cause: str) -> None:
    """Which rule, and never a value."""
    with pytest.raises(InvalidBody) as refused:
        await parse_part(body)
    assert refused.value.cause == cause
