"""The 200 of a change, composed once, against the same answer as aiohttp composes it."""

import asyncio
import itertools
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

from service.web.answers import DONE
from tests.conftest import Start, bearer

PAGE, OTHER_PAGE = "https://app.example", "http://localhost:3000"


def comparable(answer: aiohttp.ClientResponse) -> dict[str, object]:
    """What does not depend on the moment; names listed in a header are in no order."""
    listed = ("Access-Control-Expose-Headers",)
    return {
        name: sorted(value.split(",")) if name in listed else value
        for name, value in answer.headers.items()
        if name not in ("Date", "Connection")
    }


@pytest.mark.parametrize("origins", ["", PAGE, f"{PAGE},{OTHER_PAGE}"])
async def test_the_composed_answer_has_all_that_an_ordinary_one_has(
    start: Start, origins: str
) -> None:
    """Whoever asks, of whatever origin; aiohttp composes the answer that ends a connection."""
    client = await start(CORS_ORIGINS=origins)
    origins_sent = (None, PAGE, OTHER_PAGE, "https://evil.example", "")
    for method, origin in itertools.product(("POST", "DELETE"), origins_sent):
        headers = {**bearer(), "X-Request-ID": "same"}
        if origin is not None:
            headers["Origin"] = origin
        answers = [
            await client.request(
                method, "/systemevent/read", json={"id": 1}, headers={**headers, **more}
            )
            for more in ({}, {"Connection": "close"})
        ]
        composed, ordinary = answers
        assert "Connection" not in composed.headers
        assert ordinary.headers["Connection"] == "close"
        assert comparable(composed) == comparable(ordinary)
        dates = [parsedate_to_datetime(answer.headers["Date"]) for answer in answers]
        assert abs((dates[0] - dates[1]).total_seconds()) < 60
        assert [await answer.read() for answer in answers] == [DONE, DONE]


async def test_what_varies_is_each_callers_own(start: Start) -> None:
    """Many at a time share what is composed, and neither a request id nor an origin."""
    client = await start(CORS_ORIGINS=f"{PAGE},{OTHER_PAGE}")
    origins = (PAGE, OTHER_PAGE, "https://evil.example")

    async def ask(number: int) -> None:
        origin, request_id = origins[number % 3], f"request-{number}"
        headers = {**bearer(), "Origin": origin, "X-Request-ID": request_id}
        async with client.post("/systemevent/read", json={"id": 1}, headers=headers) as answer:
            assert await answer.read() == DONE
            assert answer.headers["X-Request-ID"] == request_id
            allowed = None if origin == origins[2] else origin
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed

    await asyncio.gather(*map(ask, range(300)))
