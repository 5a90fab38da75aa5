"""GET /metrics: each number changes for the reason that its name says, and for no other."""

import asyncio
import math
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from service import __version__
from service.admin.families import SECONDS
from service.database.group_commit import LARGE_IN_FLIGHT
from tests.conftest import ROLE, Sandbox, Service, Start, bearer, serving_postgres
from tests.support.cluster import POOLED, Cluster
from tests.support.metrics import Scrape, scrape
from tests.support.process import PATIENCE
from tests.support.shared import Shared, clean, serve
from tests.support.tokens import jwk, private, serve_keys, signed

Client = TestClient[Any, Any]
READ = "/systemevent/read"
IMPATIENT = {"LIMITS_DEADLINE": "0.5", "LIMITS_BODY_DEADLINE": "0.5"}


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service that waits for longer than any test does."""
    patient = {"DATABASE_STATEMENT_TIMEOUT": "60", "LIMITS_DEADLINE": "60"}
    async with serve(cluster, **patient) as shared:
        yield shared


database, client = clean()


async def metrics(client: Client) -> Scrape:
    """What its service shows."""
    service = client.server
    assert isinstance(service, Service)
    return await scrape(service.admin)


async def until(client: Client, is_seen: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until it is seen."""
    async with asyncio.timeout(PATIENCE):
        while not is_seen(shown := await metrics(client)):
            pass
    return shown


async def mark(client: Client, *ids: int, user: str = "alice", method: str = "POST") -> int:
    """Mark events; the status."""
    async with client.request(method, READ, json={"ids": ids}, headers=bearer(user)) as answer:
        return answer.status


REQUESTS: list[tuple[str, str, dict[str, str], str, tuple[str, str, int]]] = [
    ("POST", READ, bearer(), '{"id":1}', ("POST", READ, 200)),
    ("POST", f"{READ}?x=1", bearer(), '{"id":1}', ("POST", READ, 200)),
    ("DELETE", READ, bearer(), '{"id":1}', ("DELETE", READ, 200)),
    ("POST", "/systemevent", bearer(), "{}", ("POST", "/systemevent", 200)),
    ("POST", READ, bearer(), "{}", ("POST", READ, 400)),
    ("POST", READ, {}, "{}", ("POST", READ, 401)),
    ("GET", READ, {}, "", ("GET", READ, 405)),
    ("GET", "/systemevent/read/12345", {}, "", ("GET", "other", 404)),
    ("PROPFIND", READ, {}, "", ("other", READ, 405)),
]


@pytest.mark.parametrize(("method", "path", "headers", "body", "labels"), REQUESTS)
async def test_requests(
    client: Client,
    method: str,
    path: str,
    headers: dict[str, str],
    body: str,
    labels: tuple[str, str, int],
) -> None:
    """By method, route and status; what a caller makes up is "other"."""
    before = await metrics(client)
    async with client.request(method, path, data=body, headers=headers) as answer:
        await answer.read()
    after = await metrics(client)
    method, route, status = labels
    counted = {"method": method, "route": route, "status": str(status)}

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert grown("requests_total", **counted) == grown("requests_total") == 1
    assert grown("request_duration_seconds_count", route=route) == 1
    assert grown("request_duration_seconds_count") == 1
    assert grown("request_duration_seconds_sum", route=route) > 0


async def test_a_duration_is_in_its_buckets(client: Client) -> None:
    """In those of a bound that it does not pass, and in no other."""
    before = await metrics(client)
    assert await mark(client, 1) == 200
    after = await metrics(client)

    def grown(name: str, **labels: str) -> float:
        name = f"request_duration_seconds_{name}"
        return after.sum(name, **labels) - before.sum(name, **labels)

    took = grown("sum")
    for bound in (*SECONDS, math.inf):
        le = "+Inf" if bound == math.inf else str(bound)
        assert grown("bucket", route=READ, le=le) == (took <= bound)


REFUSALS: list[tuple[dict[str, str], str, str, str]] = [
    (bearer(), "{}", "400", "no ids"),
    (bearer(), "id=5", "400", "not JSON"),
    ({}, '{"id":1}', "401", "unauthenticated"),
    (bearer(exp=1), '{"id":1}', "401", "expired"),
    (bearer(userId=None), '{"id":1}', "401", "claim user"),
    (bearer("eve"), '{"id":1}', "401", "unknown user"),
    (bearer("nobody"), '{"id":1}', "403", "no organization"),
]


@pytest.mark.parametrize(("headers", "body", "status", "cause"), REFUSALS)
async def test_refusals(
    client: Client, headers: dict[str, str], body: str, status: str, cause: str
) -> None:
    """By status and the rule that was broken."""
    before = await metrics(client)
    async with client.post(READ, data=body, headers=headers) as answer:
        assert answer.status == int(status)
    after = await metrics(client)
    labels = {"status": status, "cause": cause}
    assert after.sum("refusals_total", **labels) - before.sum("refusals_total", **labels) == 1
    assert after.sum("refusals_total") - before.sum("refusals_total") == 1


@pytest.mark.parametrize(("method", "kind"), [("POST", "read"), ("DELETE", "unread")])
async def test_a_statement_for_many(client: Client, method: str, kind: str) -> None:
    """How many statements, what they carry, how long requests wait for them, how long they take."""
    before = await metrics(client)
    answers = await asyncio.gather(*(mark(client, 1, 2, 3, method=method) for _ in range(20)))
    assert set(answers) == {200}
    after = await metrics(client)

    def grown(name: str) -> float:
        assert after.sum(name) - before.sum(name) == after.sum(name, kind=kind) - before.sum(
            name, kind=kind
        )
        return after.sum(name) - before.sum(name)

    assert grown("statement_requests_sum") == 20
    assert grown("statement_ids_sum") == 60
    assert 1 <= grown("statement_requests_count") < 20
    for name in ("statement_ids", "statement_wait_seconds", "statement_duration_seconds"):
        assert grown(f"{name}_count") == grown("statement_requests_count")
    assert grown("statement_wait_seconds_sum") > 0
    assert grown("statement_duration_seconds_sum") > 0
    assert grown("statement_failures_total") == 0


@pytest.mark.parametrize("path", ["/systemevent", "/systemevent/count"])
async def test_a_statement_that_reads(client: Client, path: str) -> None:
    """A list and a count have waiting and statement time; they carry no ids."""
    before = await metrics(client)
    async with client.post(path, json={}, headers=bearer()) as answer:
        assert answer.status == 200
    after = await metrics(client)
    for name in ("statement_wait_seconds", "statement_duration_seconds"):
        for part in ("count", "sum"):
            sample, labels = f"{name}_{part}", {"kind": "list"}
            assert after.sum(sample, **labels) > before.sum(sample, **labels)
    assert not list(after.samples("statement_ids_count", kind="list"))


async def test_what_waits_and_what_is_in_use(
    client: Client, database: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the table is locked: the queue, connections in use, failed attempts; then no more."""
    monkeypatch.setattr("service.admin.health.PROBE_TIMEOUT", 0.1)  # the scrape asks the table, too
    async with database.owner.transaction():
        await database.owner.execute("lock table system_event_read in access exclusive mode")
        first = asyncio.create_task(mark(client, 1))
        while not await database.owner.fetch("select from pg_locks where not granted"):
            assert not first.done()
        others = [asyncio.create_task(mark(client, 1)) for _ in range(7)]
        listed = asyncio.create_task(client.post("/systemevent", json={}, headers=bearer()))
        locked = {"kind": "read", "error": "LockNotAvailableError"}
        await until(
            client,
            lambda shown: (
                shown.sum("queued_requests", kind="read", lane="small") == 7
                and shown.sum("database_connections", pool="reads", state="in_use") == 1
                and shown.sum("statement_failures_total", **locked) >= 1
            ),
        )
        large = []
        while not (await metrics(client)).sum("queued_requests", kind="read", lane="large"):
            large.append(asyncio.create_task(mark(client, *range(1, 200), user="bob")))
        assert len(large) > LARGE_IN_FLIGHT
    assert set(await asyncio.gather(first, *others, *large)) == {200}
    assert (await listed).status == 200
    shown = await metrics(client)
    assert shown.sum("queued_requests") == 0
    assert shown.sum("database_connections", state="in_use") == 0
    assert shown.sum("database_connections", pool="writes", state="idle") >= 1
    assert shown.sum("database_connections_max", pool="writes") == 16
    assert shown.sum("database_connections_max", pool="reads") == 4


async def test_what_ends_at_the_deadline(start: Start, database: Sandbox) -> None:
    """A 503 is counted by its cause, whichever of the parts has found it out."""
    client = await start(**IMPATIENT)
    async with database.owner.transaction():
        await database.owner.execute("lock table system_event_read in access exclusive mode")
        async with client.post("/systemevent", json={}, headers=bearer()) as answer:
            assert (await mark(client, 1), answer.status) == (503, 503)
    shown = await metrics(client)
    assert shown.sum("refusals_total", status="503", cause="deadline") == 1
    # Behind a pooler the role's lock_timeout holds for lists as well.
    waited = "LockNotAvailableError" if POOLED else "QueryCanceledError"
    assert shown.sum("refusals_total", status="503", cause=waited) == 1
    assert shown.sum("statement_failures_total", kind="list", error=waited) >= 1


async def test_verified_tokens(client: Client) -> None:
    """A token is verified once, and remembered."""
    headers = bearer("alice", jti="1")
    before = await metrics(client)
    for _ in range(3):
        async with client.post(READ, json={"id": 1}, headers=headers) as answer:
            assert answer.status == 200
    headers["Authorization"] = headers["Authorization"].replace("Bearer ", "bearer  ")
    async with client.post(READ, json={"id": 1}, headers=headers) as answer:
        assert answer.status == 200
    async with client.post(READ, json={"id": 1}, headers=bearer(exp=1)) as answer:
        assert answer.status == 401
    after = await metrics(client)
    grown = {
        name: after.sum(name) - before.sum(name)
        for name in (
            "verified_token_hits_total",
            "verified_token_misses_total",
            "verified_tokens",
        )
    }
    assert list(grown.values()) == [3, 2, 1]


async def test_the_key_set(start: Start) -> None:
    """Fetches that fail, and the time of the last that did not."""
    async with serve_keys() as server:

        async def broken(_: web.Request) -> web.Response:
            return web.Response(status=500)

        server.answer = broken
        client = await start(AUTH_JWKS_URL=server.url, AUTH_ALGORITHMS="ES256", ready=False)
        shown = await until(client, lambda shown: shown.sum("key_set_failures_total") >= 1)
        assert not list(shown.samples("key_set_timestamp_seconds"))
        began = time.time()
        server.serve(jwk(private("ES256"), "first"))
        shown = await until(
            client, lambda shown: bool(list(shown.samples("key_set_timestamp_seconds")))
        )
        assert began <= shown.sum("key_set_timestamp_seconds") <= time.time()
        headers = {"Authorization": f"Bearer {signed('ES256', 'first')}"}
        async with client.post(READ, json={"id": 1}, headers=headers) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that tests here may freeze."""
    with serving_postgres(name="events") as cluster:
        yield cluster


async def test_a_server_that_is_frozen(
    start: Start, own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is down, and what was given up is left behind, until it is there again."""
    client = await start(own.url("events", ROLE), **IMPATIENT)
    assert await mark(client, 1) == 200
    shown = await metrics(client)
    assert (shown.sum("database_up"), shown.sum("database_connections", state="left_behind")) == (
        1,
        0,
    )
    own.freeze()
    monkeypatch.setattr("service.admin.health.PROBE_TIMEOUT", 0.1)
    assert await mark(client, 1) == 503
    shown = await until(
        client,
        lambda shown: shown.sum("database_connections", pool="writes", state="left_behind") == 1,
    )
    assert shown.sum("database_up") == 0
    own.thaw()
    monkeypatch.undo()
    await until(
        client,
        lambda shown: (
            shown.sum("database_connections", state="left_behind") == 0
            and shown.sum("database_up") == 1
        ),
    )


async def test_what_it_is(client: Client) -> None:
    """The version, and how many workers there are."""
    shown = await metrics(client)
    labels = {"version": __version__, "python": platform.python_version()}
    assert list(shown.samples("build_info", **labels)) == [1]
    assert shown.sum("workers") == 1


async def test_both_forms(client: Client) -> None:
    """Prometheus asks for OpenMetrics, people for text."""
    service = client.server
    assert isinstance(service, Service)
    for accept, form, end in (
        ("*/*", "text/plain", "\n"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", OPEN, "# EOF\n"),
    ):
        url = f"{service.admin}/metrics"
        async with aiohttp.request("GET", url, headers={"Accept": accept}) as answer:
            assert answer.content_type == form
            assert (await answer.text()).endswith(end)


OPEN = "application/openmetrics-text"


async def test_callers_make_no_series(client: Client) -> None:
    """Whatever they send: paths, methods, ids, tokens."""

    async def series() -> int:
        return sum(len(family.samples) for family in (await metrics(client)).families)

    async def send(number: int) -> None:
        headers = {"Authorization": f"Bearer {number}", "X-Request-ID": str(number)}
        for method, path in (("GET", f"/{number}"), (f"M{number}", READ), ("POST", READ)):
            async with client.request(method, path, headers=headers) as answer:
                assert answer.status in (400, 401, 404, 405)
        async with client.post(READ, json={"id": number}, headers=bearer(f"u{number}")) as answer:
            assert answer.status == 401

    await send(1)
    before = await series()
    for number in range(2, 12):
        await send(number)
    assert await series() == before
