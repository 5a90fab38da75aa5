"""CORS: pages of the configured origins may call and read every answer; no others; no cookies."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.conftest import Sandbox, Start, bearer
from tests.support.cluster import Cluster
from tests.support.shared import Client, Shared, refused, serve

PAGE = "https://app.example"
OTHER_PAGE = "http://localhost:3000"
ENDPOINTS = [
    ("POST", "/systemevent/read"),
    ("DELETE", "/systemevent/read"),
    ("POST", "/systemevent"),
    ("POST", "/systemevent/count"),
    ("POST", "/systemevent/read/all"),
]
STRANGERS = [
    "https://evil.example",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil.example",
    "https://evil-app.example",
    "https://app.example/",
    "https://APP.example",
    "https://sub.app.example",
    "null",
    "*",
    "",
    f"{PAGE}, {OTHER_PAGE}",
    "https://äpp.example",
]

endpoints = pytest.mark.parametrize(("method", "path"), ENDPOINTS)


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service that two pages may call."""
    async with serve(cluster, CORS_ORIGINS=f"{PAGE}, {OTHER_PAGE}") as shared:
        yield shared


@pytest.fixture
def database(shared: Shared) -> Sandbox:
    """The database of that service."""
    return shared.database


@pytest.fixture
def client(shared: Shared) -> Client:
    """A client of that service."""
    return shared.client


async def preflight(
    client: Client,
    path: str = "/systemevent/read",
    method: str = "POST",
    origin: str = PAGE,
    headers: str = "authorization,content-type",
) -> aiohttp.ClientResponse:
    """Ask as a browser does before it sends the request itself: without a token."""
    return await client.options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


def names(answer: aiohttp.ClientResponse, header: str) -> set[str]:
    """A header's comma-separated names, in lower case."""
    return {name.strip().lower() for name in answer.headers.get(header, "").split(",")} - {""}


def allowed(answer: aiohttp.ClientResponse) -> str | None:
    """The origin whose page may read the answer; nothing wider, ever."""
    assert "Access-Control-Allow-Credentials" not in answer.headers
    origins = answer.headers.getall("Access-Control-Allow-Origin", [])
    assert len(origins) <= 1
    assert "*" not in origins
    return origins[0] if origins else None


@endpoints
@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE])
async def test_a_page_may_call(client: Client, method: str, path: str, origin: str) -> None:
    """The preflight allows the method, the token and the content type, and is kept for a while."""
    answer = await preflight(client, path, method, origin)
    assert answer.status in {200, 204}
    assert allowed(answer) == origin
    assert names(answer, "Access-Control-Allow-Methods") == {method.lower()}
    assert names(answer, "Access-Control-Allow-Headers") >= {"authorization", "content-type"}
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


@pytest.mark.parametrize(
    "headers", ["authorization", "Authorization, Content-Type", "x-request-id", "content-type", ""]
)
async def test_a_page_may_send_the_headers_that_the_api_reads(client: Client, headers: str) -> None:
    """Any of them, in any case."""
    answer = await preflight(client, headers=headers)
    assert (answer.status, allowed(answer)) == (200, PAGE)
    wanted = {name.strip().lower() for name in headers.split(",")} - {""}
    assert names(answer, "Access-Control-Allow-Headers") >= wanted


async def test_a_page_may_send_the_headers_that_are_configured(start: Start) -> None:
    """Such as those of tracing, beside the ones that the API reads; still no others."""
    client = await start(CORS_ORIGINS=PAGE, CORS_HEADERS="traceparent, Baggage")
    answer = await preflight(client, headers="authorization,baggage,traceparent")
    assert (answer.status, allowed(answer)) == (200, PAGE)
    assert names(answer, "Access-Control-Allow-Headers") >= {"authorization", "traceparent"}
    assert (await preflight(client, headers="baggage,x-evil")).status == 403


async def test_a_page_may_ask_for_a_path_that_does_not_exist(client: Client) -> None:
    """Then it can read the 404; without the preflight its browser would tell it nothing."""
    answer = await preflight(client, "/nowhere", "PUT")
    assert (answer.status, allowed(answer)) == (200, PAGE)
    for origin, method in (("https://evil.example", "POST"), (PAGE, "")):
        assert (await preflight(client, "/nowhere", method, origin)).status == 404


@endpoints
@pytest.mark.parametrize("origin", STRANGERS)
async def test_another_page_may_not_call(
    client: Client, method: str, path: str, origin: str
) -> None:
    """Origins are compared as a whole; neither the preflight nor an answer names another."""
    answer = await preflight(client, path, method, origin)
    assert answer.status in {400, 403}
    await refused(answer)
    assert allowed(answer) is None
    answer = await client.request(method, path, headers={**bearer(), "Origin": origin})
    assert answer.status in {200, 400}
    assert allowed(answer) is None


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/systemevent/read", "PUT", "authorization"),
        ("/systemevent/read", "GET", "authorization"),
        ("/systemevent/read", "post", "authorization"),
        ("/systemevent", "DELETE", "authorization"),
        ("/nowhere", "POST", "authorization, x-evil"),
        ("/systemevent/read", "POST", "authorization, x-evil"),
        ("/systemevent/read", "POST", "cookie"),
        ("/systemevent/read", "POST", "*"),
    ],
)
async def test_a_page_may_do_nothing_else(
    client: Client, path: str, method: str, headers: str
) -> None:
    """Other methods and headers are refused, in the one shape."""
    answer = await preflight(client, path, method, headers=headers)
    assert answer.status == 403
    await refused(answer)
    assert method.lower() not in names(answer, "Access-Control-Allow-Methods")


@pytest.mark.parametrize("missing", ["Origin", "Access-Control-Request-Method"])
async def test_options_without_the_headers_of_a_preflight_is_refused(
    client: Client, missing: str
) -> None:
    """It is no preflight then."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = await client.options(
        "/systemevent/read", headers={k: v for k, v in headers.items() if k != missing}
    )
    assert answer.status == 403
    await refused(answer)


ANSWERS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "200": ("POST", "/systemevent/read", '{"id": 1}', bearer()),
    "200 of DELETE": ("DELETE", "/systemevent/read", '{"id": 1}', bearer()),
    "200 of the list": ("POST", "/systemevent", "", bearer()),
    "400": ("POST", "/systemevent/read", "", bearer()),
    "400 of the list": ("POST", "/systemevent", '{"take": 0}', bearer()),
    "401 no token": ("POST", "/systemevent/read", '{"id": 1}', {}),
    "401 expired": ("POST", "/systemevent/read", '{"id": 1}', bearer(exp=1)),
    "401 unknown user": ("DELETE", "/systemevent/read", '{"id": 1}', bearer("stranger")),
    "401 of the list": ("POST", "/systemevent", "", {}),
    "403": ("POST", "/systemevent/read", '{"id": 1}', bearer("nobody")),
    "404": ("POST", "/nowhere", '{"id": 1}', bearer()),
    "405": ("PUT", "/systemevent/read", '{"id": 1}', bearer()),
    "413": ("POST", "/systemevent/read", " " * 400_000, bearer()),
    "415": ("POST", "/systemevent/read", "x", {**bearer(), "Content-Encoding": "gzip"}),
    "417": ("POST", "/systemevent/read", '{"id": 1}', {**bearer(), "Expect": "x"}),
}


@pytest.mark.parametrize(("method", "path", "body", "headers"), ANSWERS.values(), ids=ANSWERS)
async def test_a_page_reads_every_answer(
    shared: Shared, method: str, path: str, body: str, headers: dict[str, str]
) -> None:
    """Refusals as well as successes, with the headers that say what to do."""
    answer = await shared.client.request(
        method, path, data=body, headers={**headers, "Origin": PAGE}
    )
    assert allowed(answer) == PAGE
    exposed = names(answer, "Access-Control-Expose-Headers")
    assert exposed >= {"www-authenticate", "retry-after", "x-request-id"}
    assert "Origin" in answer.headers["Vary"]


@endpoints
async def test_a_page_reads_a_fault_of_ours(
    client: Client, database: Sandbox, method: str, path: str
) -> None:
    """500 is an answer like any other."""
    await database.owner.execute("alter table system_event_read rename to lost")
    try:
        answer = await client.request(
            method, path, data='{"id": 1}', headers={**bearer(), "Origin": PAGE}
        )
    finally:
        await database.owner.execute("alter table lost rename to system_event_read")
    assert (answer.status, allowed(answer)) == (500, PAGE)
    assert await refused(answer) == "internal server error"


async def test_a_page_reads_that_the_database_is_away(start: Start, cluster: Cluster) -> None:
    """503, and when to come back."""
    client = await start(
        cluster.url("no_such_database"),
        ready=False,
        CORS_ORIGINS=PAGE,
        LIMITS_DEADLINE="0.1",
        LIMITS_BODY_DEADLINE="0.1",
    )
    answer = await client.post("/systemevent", headers={**bearer(), "Origin": PAGE})
    assert (answer.status, allowed(answer)) == (503, PAGE)
    assert "retry-after" in names(answer, "Access-Control-Expose-Headers")


async def test_the_methods_of_a_path_include_that_of_a_preflight(client: Client) -> None:
    """Where there are pages that may call, 405 lists OPTIONS too."""
    answer = await client.get("/systemevent/read")
    assert (answer.status, names(answer, "Allow")) == (405, {"delete", "options", "post"})


@pytest.mark.parametrize("origin", [PAGE, "https://evil.example", None])
async def test_a_cache_keeps_answers_of_different_origins_apart(
    client: Client, origin: str | None
) -> None:
    """Vary: Origin wherever it matters: also for a stranger, for nobody, and in a preflight."""
    headers = {} if origin is None else {"Origin": origin}
    for answer in (
        await client.post("/systemevent/read", data='{"id": 1}', headers={**bearer(), **headers}),
        await client.post("/systemevent/read", data='{"id": 1}', headers=headers),
        await preflight(client, origin=origin or ""),
    ):
        assert "Origin" in answer.headers["Vary"]


async def test_nobody_may_call_by_default(start: Start) -> None:
    """Without configured origins there is no preflight, and no answer names an origin."""
    client = await start()
    for method, path in ENDPOINTS:
        answer = await preflight(client, path, method)
        assert answer.status == 405
        await refused(answer)
        assert not any(name.startswith("Access-Control") for name in answer.headers)
        for headers in (bearer(), {}):
            answer = await client.request(
                method, path, data='{"id": 1}', headers={**headers, "Origin": PAGE}
            )
            assert not any(name.startswith("Access-Control") for name in answer.headers)
