"""Key sets from a URL: what is taken from them, when they are fetched, and when their keys end."""

import asyncio
import datetime as dt
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service import config, logs
from service.auth.jwks import Jwks
from service.auth.keys import MAX_CANDIDATES, Key
from service.auth.tokens import Tokens
from service.errors import InvalidToken, Unavailable
from service.observing import Observers
from tests.conftest import SECRET
from tests.support.tokens import (
    ASYMMETRIC,
    Answer,
    KeyServer,
    jwk,
    private,
    segment,
    serve_keys,
    signed,
)

BOTH = ("ES256", "RS256")
FIRST, SECOND = jwk(private("ES256"), "first"), jwk(private("RS256"), "second")
NEVER = 3600.0  # seconds; longer than any test
PATIENCE = 30.0  # seconds, after which a test fails
SHORT = 0.1  # seconds that a fetch may take, where it is sure to take longer


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """A server of keys."""
    async with serve_keys() as server:
        yield server


async def known(jwks: Jwks, *kids: str | None) -> list[bool]:
    """Which of the kids lead to a key for one of BOTH."""
    found = [await jwks.find(kid, "ES256") or await jwks.find(kid, "RS256") for kid in kids]
    return [bool(keys) for keys in found]


def log() -> Observers:
    """Observers of which the log is one."""
    observers = Observers()
    logs.listen(observers)
    return observers


def verifier(jwks: Jwks) -> Tokens:
    """What verifies with a key set."""
    algorithms: Any = list(jwks.algorithms)
    tokens = Tokens(config.Auth(algorithms=algorithms), jwks)
    jwks.on_change = tokens.forget
    return tokens


async def verdict(tokens: Tokens, token: str) -> str:
    """The user that a token is for, or the cause for which it is refused."""
    try:
        return await tokens.user_id(f"Bearer {token}")
    except InvalidToken as error:
        return error.cause


# What is taken from a set


async def test_every_algorithm_verifies(key_server: KeyServer) -> None:
    """Each asymmetric algorithm verifies with the key of its kid, and no other key does."""
    key_server.serve(*(jwk(private(name), f"key-{name}") for name in ASYMMETRIC))
    tokens = verifier(Jwks(key_server.url, ASYMMETRIC))
    for name in ASYMMETRIC:
        other = "EdDSA" if name != "EdDSA" else "ES256"
        assert await verdict(tokens, signed(name, f"key-{name}")) == "alice"
        assert await verdict(tokens, signed(other, f"key-{name}")) == "unknown key"
        assert await verdict(tokens, signed(name, f"key-{name}", number=1)) == "signature"


OCT = {"kty": "oct", "kid": "second", "k": segment(SECRET.encode()).decode()}


@pytest.mark.parametrize(
    ("key", "usable"),
    [
        (SECOND, True),
        ({**SECOND, "use": "sig"}, True),
        ({**SECOND, "use": ""}, True),
        ({**SECOND, "use": None}, True),
        ({**SECOND, "alg": "RS256"}, True),
        ({**SECOND, "alg": None}, True),
        ({**SECOND, "alg": ""}, True),
        ({**SECOND, "key_ops": None}, True),
        ({**SECOND, "key_ops": ["verify"]}, True),
        ({**SECOND, "key_ops": ["encrypt", "verify"]}, True),
        ({**SECOND, "x5c": ["junk"], "ext": True}, True),
        ({**SECOND, "key_ops": ["encrypt"]}, False),
        ({**SECOND, "key_ops": []}, False),
        ({**SECOND, "key_ops": 1}, False),
        ({**SECOND, "use": "enc"}, False),
        ({**SECOND, "use": ["sig"]}, False),
        ({**SECOND, "alg": "RSA-OAEP"}, False),
        ({**SECOND, "alg": "RS512"}, False),
        ({**SECOND, "alg": ["RS256"]}, False),
        ({**SECOND, "kty": "EC"}, False),
        ({**SECOND, "kty": ["RSA"]}, False),
        ({**SECOND, "n": None}, False),
        ({**SECOND, "n": "AQAB"}, False),
        ({**SECOND, "n": "!"}, False),
        ({**SECOND, "e": 65537}, False),
        ({**SECOND, "kid": 2}, False),
        (jwk(private("ES384"), "second"), False),
        ({**jwk(private("ES256"), "second"), "crv": "P-999"}, False),
        ({**jwk(private("ES256"), "second"), "x": "AA"}, False),
        ({**OCT, "alg": "HS256"}, False),
        (OCT, False),
        ("second", False),
        (None, False),
    ],
)
async def test_one_bad_key_costs_no_good_one(
    key_server: KeyServer, key: object, *, usable: bool
) -> None:
    """Keys that are malformed, not for signatures, or of another algorithm, are passed over."""
    key_server.serve(key, FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=NEVER)
    assert await known(jwks, "first", "second") == [True, usable]


@pytest.mark.parametrize("of_key", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("of_token", ["EdDSA", "Ed25519"])
async def test_ed25519_has_two_names(
    key_server: KeyServer, of_key: str | None, of_token: str
) -> None:
    """EdDSA with that curve is called Ed25519 as well (RFC 9864), in the token and in the set."""
    key_server.serve(jwk(private("EdDSA"), "a", alg=of_key))
    assert len(await Jwks(key_server.url, ["EdDSA"]).find("a", of_token)) == 1


@pytest.mark.parametrize("name", ["RS256", "PS256", "RS512"])
async def test_one_kid_for_several_algorithms(key_server: KeyServer, name: str) -> None:
    """ForgeRock and Ping list a key once for each algorithm that it may be used with."""
    wanted = ["RS256", "RS512", "PS256"]
    key_server.serve(*(jwk(private("RS256"), "a", alg=each) for each in wanted))
    assert await verdict(verifier(Jwks(key_server.url, wanted)), signed(name, "a")) == "alice"


@pytest.mark.parametrize("first", [True, False])
async def test_an_encryption_key_of_the_same_kid(key_server: KeyServer, *, first: bool) -> None:
    """Keycloak has one, before or after the key that signs, which it does not hide."""
    keys = [jwk(private("RS256", 1), "a", use="enc"), jwk(private("RS256"), "a", use="sig")]
    key_server.serve(*(keys if first else reversed(keys)))
    assert await verdict(verifier(Jwks(key_server.url, BOTH)), signed("RS256", "a")) == "alice"


@pytest.mark.parametrize(
    ("kids", "kid", "cause"),
    [
        (["a", "b"], "a", "signature"),
        (["a", "b"], "b", "alice"),
        (["a", "a"], "a", "alice"),
        (["a", "b"], None, "alice"),
        (["a", None], None, "alice"),
        ([None, None], None, "alice"),
        (["a", "b"], "c", "unknown key"),
        ([None, None], "a", "unknown key"),
        ([None, "a"], "a", "alice"),
        (["x"] * MAX_CANDIDATES + ["a"], None, "signature"),
    ],
)
async def test_candidates(
    key_server: KeyServer, kids: list[str | None], kid: str | None, cause: str
) -> None:
    """All keys of the kid, or all where the token has none, are tried, up to a bound."""
    numbers = [*range(1, len(kids)), 0]  # the last has signed
    made = [jwk(private("EdDSA", number), each) for number, each in zip(numbers, kids, strict=True)]
    key_server.serve(FIRST, *made)
    tokens = verifier(Jwks(key_server.url, ["ES256", "EdDSA"], cooldown=NEVER))
    assert await verdict(tokens, signed("EdDSA", kid)) == cause


# When it is fetched


async def test_an_unknown_kid_fetches_once(key_server: KeyServer) -> None:
    """After a rotation the first tokens with the new key cause one fetch, which they all share."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    assert await known(jwks, "first") == [True]
    key_server.serve(FIRST, SECOND)
    kids = ["second"] * 20 + ["third"]
    found = await asyncio.gather(*(jwks.find(kid, "RS256") for kid in kids))
    assert [bool(keys) for keys in found] == [True] * 20 + [False]
    assert key_server.fetched == 2


async def test_unknown_kids_wait_for_two_seconds(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up kids cannot make the service hammer the key server, nor keep out a new one."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH)
    assert await known(jwks, "first", *map(str, range(200))) == [True] + [False] * 200
    key_server.serve(FIRST, SECOND)
    assert await known(jwks, "second") == [False]
    assert key_server.fetched == 1
    loop = asyncio.get_running_loop()
    later = loop.time() + 2.0
    monkeypatch.setattr(loop, "time", lambda: later)
    assert await known(jwks, "second") == [True]
    assert key_server.fetched == 2


async def test_a_wrong_algorithm_fetches_nothing(key_server: KeyServer) -> None:
    """No key set can make a token good whose algorithm is not configured."""
    key_server.serve(FIRST)
    tokens = verifier(Jwks(key_server.url, ["ES256"], cooldown=0))
    assert await verdict(tokens, signed("ES256", "first")) == "alice"
    assert await verdict(tokens, signed("RS256", "x")) == "algorithm"
    assert key_server.fetched == 1


async def test_the_set_is_fetched_on_a_timer(key_server: KeyServer) -> None:
    """A new set arrives without anybody asking for it; the same one again changes nothing."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, refresh=0.01, cooldown=NEVER)
    revoked = asyncio.Event()
    jwks.on_change = revoked.set
    async with jwks.run():
        for _ in range(3):
            key_server.visited.clear()
            await key_server.visited.wait()
        assert await known(jwks, "first", "second") == [True, False]
        assert not revoked.is_set()
        key_server.serve(SECOND)
        await asyncio.wait_for(revoked.wait(), PATIENCE)
        assert await known(jwks, "first", "second") == [False, True]


async def test_a_stalled_fetch_keeps_nobody_else_waiting(key_server: KeyServer) -> None:
    """Tokens with a known kid, or none, pass while a fetch hangs; only the others wait for it."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    await jwks.find("first", "ES256")
    go_on = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.json_response({"keys": [SECOND]})

    key_server.answer = hang
    key_server.visited.clear()
    waiting = asyncio.create_task(jwks.find("second", "RS256"))
    await key_server.visited.wait()
    assert await jwks.find("first", "ES256")
    assert await jwks.find(None, "ES256")
    assert not waiting.done()
    go_on.set()
    assert await waiting


async def test_a_caller_that_leaves_does_not_end_the_fetch(key_server: KeyServer) -> None:
    """The fetch belongs to all who wait for it."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH)
    leaves, stays = (asyncio.create_task(jwks.find("first", "ES256")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays
    assert key_server.fetched == 1


# When a fetch fails


async def gone(_: web.Request) -> web.StreamResponse:
    """An error."""
    return web.json_response({"keys": [SECOND]}, status=500)


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """A redirect to a good set."""
    if request.query_string:
        return web.json_response({"keys": [SECOND]})
    raise web.HTTPFound("/keys?followed")


async def huge(_: web.Request) -> web.StreamResponse:
    """A good set, with a megabyte of padding."""
    return web.json_response({"keys": [SECOND], "padding": "x" * 2**20})


async def endless(request: web.Request) -> web.StreamResponse:
    """A body that never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 2**16)


async def compressed(_: web.Request) -> web.StreamResponse:
    """A good set, in gzip."""
    response = web.json_response({"keys": [SECOND]})
    response.enable_compression(web.ContentCoding.gzip)
    response._compression_force = web.ContentCoding.gzip
    return response


async def dropped(request: web.Request) -> web.StreamResponse:
    """A connection closed without a word."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stalled(request: web.Request) -> web.StreamResponse:
    """A body of which the rest never comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"keys":')
    await asyncio.Event().wait()
    return response


def text(body: bytes, **headers: str) -> Answer:
    """A 200 with any body; `headers` with _ for -."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, content_type="application/json", headers=named)

    return answer


USELESS = b'{"keys":[1,null,"x",[],{},{"kty":"oct","k":"hush"}]}'
NO_KEY = "no key for signatures that fits auth.algorithms"
FAILING: Mapping[str, tuple[Answer, str]] = {
    "error": (gone, "HTTP 500"),
    "redirect": (elsewhere, "HTTP 302"),
    "too large": (huge, "too large"),
    "endless": (endless, "too large"),
    "compressed": (compressed, "compressed"),
    "dropped": (dropped, "ServerDisconnectedError"),
    "stalled": (stalled, "TimeoutError"),
    "empty": (text(b""), "not a JSON object"),
    "no JSON": (text(b"<html>hush"), "not a JSON object"),
    "no UTF-8": (text(b'{"keys":["\xff"]}'), "not a JSON object"),
    "a list": (text(b"[]"), "not a JSON object"),
    "nested deeply": (text(b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not a JSON"),
    "no keys": (text(b"{}"), 'no "keys" in it'),
    "keys no list": (text(b'{"keys":{"hush":1}}'), 'no "keys" in it'),
    "no key left": (text(b'{"keys":[]}'), NO_KEY),
    "no key of use": (text(USELESS), NO_KEY),
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_fetch_that_fails_changes_nothing(
    key_server: KeyServer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Known keys stay known whatever the key server does; the log says why, and quotes nothing."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0, observers=log())
    assert await known(jwks, "first") == [True]
    (key_server.answer, reason), jwks.fetch_timeout = FAILING[name], SHORT
    if name != "stalled":
        jwks.fetch_timeout = 5.0
    assert await known(jwks, "second", "first") == [False, True]
    failed = caplog.messages[-1]
    assert failed.startswith("cannot fetch auth.jwks_url from 127.0.0.1:")
    assert failed.partition(": ")[2].startswith(reason)
    assert "hush" not in caplog.text
    key_server.serve(FIRST, SECOND)
    jwks.fetch_timeout = 5.0
    assert await known(jwks, "second") == [True]


async def test_a_fetch_that_reaches_nobody(
    caplog: pytest.LogCaptureFixture, unused_tcp_port: int
) -> None:
    """The reason names what the system said; the address is told without its password."""
    jwks = Jwks(f"http://me:hush@127.0.0.1:{unused_tcp_port}/keys?hush", BOTH, observers=log())
    with pytest.raises(Unavailable):
        await jwks.find("first", "ES256")
    assert f"from 127.0.0.1:{unused_tcp_port}: ClientConnectorError: " in caplog.text
    assert "hush" not in caplog.text


async def test_a_certificate_that_nobody_trusts(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A key server is believed only where its certificate is; the log says which part failed."""
    async with serve_keys(ssl=_self_signed(tmp_path)) as server:
        server.serve(FIRST)
        with pytest.raises(Unavailable):
            await Jwks(server.url, BOTH, observers=log()).find("first", "ES256")
    assert "certificate verify failed: self-signed certificate" in caplog.text
    assert server.fetched == 0


def _self_signed(folder: Path) -> ssl.SSLContext:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    key: Any = private("ES256")
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, SHA256())
    )
    file = folder / "both.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@dataclass
class Proxy:
    """An HTTP proxy that writes down what it is asked for, and refuses it."""

    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.asked += [lines[0], *(line for line in lines if "Authorization" in line)]
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy, and an environment that names none."""
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Proxy()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_a_proxy_for_the_key_server(
    proxy: Proxy, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY is asked to connect to an https URL's host, whose name is not looked up here."""
    monkeypatch.setenv("HTTPS_PROXY", scheme + proxy.url)
    with pytest.raises(Unavailable):
        await Jwks("https://keys.invalid/keys", BOTH).find("first", "ES256")
    assert proxy.asked == ["CONNECT keys.invalid:443 HTTP/1.1"]


async def test_no_proxy(
    proxy: Proxy, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts in NO_PROXY, and http URLs, which are those on loopback, are reached directly."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.url}")
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.url}")
    key_server.serve(FIRST)
    assert await known(Jwks(key_server.url, BOTH), "first") == [True]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(Unavailable):
        await Jwks(key_server.url.replace("http:", "https:"), BOTH).find("first", "ES256")
    assert proxy.asked == []


@pytest.mark.parametrize("name", ["error", "stalled", "no key left"])
async def test_no_keys_yet(key_server: KeyServer, name: str) -> None:
    """Before the first set is there, a token can be neither accepted nor refused."""
    key_server.answer, _ = FAILING[name]
    jwks = Jwks(key_server.url, BOTH, cooldown=0, fetch_timeout=SHORT)
    for kid in ("second", None):
        with pytest.raises(Unavailable):
            await jwks.find(kid, "RS256")
    assert not jwks.ready
    key_server.serve(SECOND)
    jwks.fetch_timeout = 5.0
    assert await known(jwks, "second") == [True]
    assert jwks.ready


@pytest.mark.parametrize(
    "answer",
    [
        text(b'\xef\xbb\xbf{"keys":[%s]}' % web.json_response(FIRST).body),
        text(b'{"keys":[%s]}' % web.json_response(FIRST).body, Content_Encoding="identity"),
    ],
)
async def test_what_does_not_matter_in_an_answer(key_server: KeyServer, answer: Answer) -> None:
    """A byte order mark, and a coding that is none."""
    key_server.answer = answer
    assert await known(Jwks(key_server.url, BOTH), "first") == [True]


# When a key ends


async def test_a_key_replaced_is_revoked(key_server: KeyServer) -> None:
    """A token accepted before is refused once a set has another key, or none, under its kid."""
    key_server.serve(jwk(private("EdDSA"), "a"))
    jwks = Jwks(key_server.url, ["EdDSA"], cooldown=0)
    tokens, good = verifier(jwks), signed("EdDSA", "a")
    assert await verdict(tokens, good) == "alice"
    key_server.serve(jwk(private("EdDSA", 1), "a"))
    assert await verdict(tokens, signed("EdDSA", "b")) == "unknown key"
    assert await verdict(tokens, good) == "signature"
    key_server.serve(jwk(private("EdDSA"), "b"))
    assert await verdict(tokens, signed("EdDSA", "b")) == "alice"
    assert await verdict(tokens, good) == "unknown key"


async def test_a_key_added_forgets_nobody(key_server: KeyServer) -> None:
    """Thousands of tokens need not be verified anew for a key that is added."""
    key_server.serve(FIRST)
    revoked: list[None] = []
    jwks = Jwks(key_server.url, BOTH, lambda: revoked.append(None), cooldown=0)
    assert await known(jwks, "first") == [True]
    key_server.serve(SECOND, FIRST)
    assert await known(jwks, "second") == [True]
    assert not revoked


async def test_a_set_of_many_keys_does_not_hold_the_loop(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read a few keys at a time; and compared with the one before, not key with each key."""
    many = [jwk(private("EdDSA", number), None) for number in range(300)]
    key_server.serve(*many)
    jwks, revoked = Jwks(key_server.url, ["EdDSA"], cooldown=0), list[None]()
    jwks.on_change = lambda: revoked.append(None)
    read = at_once = compared = 0

    def parse(jwks: Jwks, jwk: dict[str, Any]) -> Key | None:
        nonlocal read
        read += 1
        return usable(jwks, jwk)

    def equal(key: Key, other: Key) -> bool:
        nonlocal compared
        compared += 1
        return bool(key.material == other.material)

    async def turns() -> None:
        nonlocal read, at_once
        while True:
            at_once, read = max(at_once, read), 0
            await asyncio.sleep(0)

    usable = Jwks._parse
    monkeypatch.setattr(Jwks, "_parse", parse)
    monkeypatch.setattr(Key, "__eq__", equal)
    watch = asyncio.create_task(turns())
    for _ in range(2):
        await jwks.find("unknown", "EdDSA")
    assert not revoked
    key_server.serve(*many[1:])
    await jwks.find("unknown", "EdDSA")
    assert len(revoked) == 1
    watch.cancel()
    assert 0 < at_once <= 100
    assert compared < 1000


async def test_keys_that_no_fetch_confirms_end(
    key_server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After max_age without a set of use, neither keys nor remembered tokens are accepted."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, max_age=SHORT, observers=log())
    tokens, ended = verifier(jwks), asyncio.Event()

    def end() -> None:
        tokens.forget()
        ended.set()

    jwks.on_change = end
    good = signed("ES256", "first")
    assert await verdict(tokens, good) == "alice"
    key_server.answer = text(b'{"keys":[]}')
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert not jwks.ready
    with pytest.raises(Unavailable):
        await tokens.user_id(f"Bearer {good}")
    assert caplog.records[0].levelno == logging.ERROR
    key_server.serve(FIRST)
    jwks.cooldown = 0
    assert await verdict(tokens, good) == "alice"


async def test_a_set_that_is_confirmed_does_not_end(key_server: KeyServer) -> None:
    """Each fetch that brings a set of use starts the hour anew."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0, max_age=NEVER)
    await known(jwks, "first")
    before = jwks._expiry
    await known(jwks, "third")
    assert before is not None
    assert before.cancelled()
    assert jwks.ready
