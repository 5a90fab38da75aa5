"""Bearer tokens over HTTP: where a token is looked for, and how its refusal is answered."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from service.auth.jwks import Jwks
from service.auth.tokens import MAX_USER_ID_BYTES
from tests.conftest import SECRET, Service, token
from tests.support.cluster import Cluster
from tests.support.shared import Shared, clean, serve
from tests.support.tokens import KeyServer, claims, forge, jwk, private, serve_keys, signed

Client = TestClient[Any, Any]
SUCCESS = (200, {"success": True}, None)
FIRST, SECOND = jwk(private("ES256"), "first"), jwk(private("RS256"), "second")


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """The service that this module shares."""
    async with serve(cluster) as shared:
        yield shared


database, client = clean()


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """A server of keys."""
    async with serve_keys() as server:
        yield server


async def post(client: Client, *authorization: str) -> tuple[int, Any, str | None]:
    """Mark an event, with any number of Authorization headers: status, body, WWW-Authenticate."""
    headers = [("Authorization", value) for value in authorization]
    async with client.post("/systemevent/read", data=b'{"id":1}', headers=headers) as answer:
        assert answer.content_type == "application/json"
        return answer.status, await answer.json(), answer.headers.get("WWW-Authenticate")


def refused(message: str) -> tuple[int, dict[str, str], str]:
    """What a token that proves nothing is answered (RFC 6750, section 3)."""
    challenge = f'Bearer error="invalid_token", error_description="{message}"'
    return 401, {"error": message}, challenge


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
async def test_a_good_token(client: Client, scheme: str) -> None:
    """The scheme in any case, and one or more spaces."""
    assert await post(client, scheme + token()) == SUCCESS


async def test_the_longest_user_id_gets_as_far_as_the_database(client: Client) -> None:
    text = forge({"alg": "HS256"}, claims(userId="\u00e9" * (MAX_USER_ID_BYTES // 2)))
    assert await post(client, f"Bearer {text}") == refused("user not found")


@pytest.mark.parametrize("second", ["Basic YQ==", ""])
async def test_two_headers(client: Client, second: str) -> None:
    """Two Authorization headers are refused, in either order, even when one of them is good."""
    good = f"Bearer {token()}"
    for pair in ((good, second), (second, good), (good, good)):
        assert await post(client, *pair) == refused("more than one Authorization header")


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"a.\x80.b", b"\xe2\x80\xa8"])
async def test_bytes_that_are_no_text(client: Client, raw: bytes) -> None:
    """Bytes that no charset explains are a refusal, not an error of ours."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(
        b"POST /systemevent/read HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: 8\r\nAuthorization: Bearer " + raw + b'\r\n\r\n{"id":1}'
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Bearer error="invalid_token"' in answer
    assert answer.endswith(b'{"error":"malformed token"}')


async def test_a_header_longer_than_any_token(client: Client) -> None:
    """A token too long for HTTP is refused before it is looked at, in the usual shape."""
    status, body, _ = await post(client, f"Bearer {'x' * 20_000}")
    assert (status, list(body)) == (431, ["error"])


# Keys from a URL


@dataclass
class Impatient(Jwks):
    """Fetches for each token with an unknown kid."""

    cooldown: float = 0.0


@pytest.fixture
def service(shared: Shared, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that takes its keys from the key server."""
    monkeypatch.setattr("service.app.Jwks", Impatient)
    environ = {"AUTH_JWKS_URL": key_server.url, "AUTH_ALGORITHMS": "ES256,RS256"}
    return Service(shared.database.url, environ)


async def test_a_key_withdrawn_is_forgotten(service: Service, key_server: KeyServer) -> None:
    """A token accepted before is refused once its key has left the set, remembered or not."""
    before, after = (f"Bearer {signed(*of)}" for of in (("ES256", "first"), ("RS256", "second")))
    key_server.serve(FIRST)
    async with TestClient(service) as client:
        assert await post(client, before) == SUCCESS
        key_server.serve(SECOND)
        assert await post(client, before) == SUCCESS
        assert await post(client, after) == SUCCESS
        assert await post(client, before) == refused("token signed with an unknown key")


async def test_the_key_server_is_down_at_the_start(service: Service, key_server: KeyServer) -> None:
    """Without keys the answer is 503, here and at /ready; with them it is 200."""

    async def gone(_: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": [FIRST]}, status=500)

    key_server.answer = gone
    async with TestClient(service) as client:
        good = f"Bearer {signed('ES256', 'first')}"
        assert (await post(client, good))[0] == 503
        async with client.session.get(f"{service.admin}/ready") as answer:
            assert (answer.status, list(await answer.json())) == (503, ["error"])
        key_server.serve(FIRST)
        assert await post(client, good) == SUCCESS


async def test_a_secret_file_is_replaced(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running service takes the new secret, and no longer what the old one has signed."""
    monkeypatch.setattr("service.auth.keys.INTERVAL", 0.001)
    file, other = tmp_path / "secret", SECRET[::-1]
    file.write_text(SECRET)
    environ = {"AUTH_SECRET": "", "AUTH_SECRET_FILE": str(file)}
    async with TestClient(Service(shared.database.url, environ)) as client:
        old, new = (f"Bearer {token(secret=secret)}" for secret in (SECRET, other))
        assert await post(client, old) == SUCCESS
        file.write_text(other)
        async with asyncio.timeout(30):
            while await post(client, new) != SUCCESS:
                pass
        assert await post(client, old) == refused("invalid token")
