"""traceparent: the caller's trace, as W3C Trace Context has it; anything else is ignored."""

from collections.abc import Sequence

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from service.web.request_info import arrive

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def trace_of(*values: str) -> Sequence[str] | None:
    """What is taken from these headers."""
    headers = CIMultiDict([("Traceparent", value) for value in values])
    return arrive(make_mocked_request("POST", "/", headers)).trace


@pytest.mark.parametrize(
    "value",
    [
        GOOD,
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-ff",  # flags that are not known yet
        f"01-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-what-comes-later",
        f"fe-{TRACE}-{SPAN}-01-",
    ],
)
async def test_a_valid_one(value: str) -> None:
    assert trace_of(value) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{GOOD}-later",  # version 00 has no more fields
        f"{GOOD}-",
        f"01-{TRACE}-{SPAN}-01x",
        f"01-{TRACE}-{SPAN}-01.later",
        GOOD.upper(),
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"0-{TRACE}-{SPAN}-01",
        f"{GOOD},{GOOD}",
        f" {GOOD}",
        "x" * 8000,
    ],
)
async def test_one_that_is_not(value: str) -> None:
    assert trace_of(value) is None


async def test_none_and_several() -> None:
    assert trace_of() is None
    assert trace_of(GOOD, GOOD) is None
