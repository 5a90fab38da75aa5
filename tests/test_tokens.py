"""Bearer tokens: each algorithm, each way of being wrong, the cache, and keys from a URL."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpServer
from aiohttp.test_utils import TestClient
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from service import config
from service.errors import InvalidToken, Unavailable
from service.jwks import Jwks
from service.keys import load_key
from service.tokens import MAX_USER_ID_BYTES, Tokens
from tests.cluster import Cluster
from tests.conftest import SECRET, Service, psql, token

Client = TestClient[Any, Any]
HMAC = ("HS256", "HS384", "HS512")
ASYMMETRIC = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private(algorithm: str) -> Private:
    """The key that signs with that algorithm."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else private("RS256")


def pem(key: Private) -> bytes:
    """The public half, as it goes into auth.public_key_file."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Private, kid: str | None, **more: object) -> dict[str, object]:
    """The public half, as a member of a key set."""
    public: Any = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        made = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(public))
    elif isinstance(public, ec.EllipticCurvePublicKey):
        made = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(public))
    else:
        made = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(public))
    made.pop("key_ops", None)
    return {**made, **({} if kid is None else {"kid": kid}), **more}


def signed(algorithm: str, kid: str | None = None) -> str:
    """A good token for alice."""
    claims = {"userId": "alice", "exp": int(time.time()) + 600}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, private(algorithm), algorithm, headers)


def segment(part: bytes) -> bytes:
    """One of the three parts of a token."""
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def forge(header: object, claims: object, secret: bytes = SECRET.encode()) -> str:
    """A token of any header and claims, even ones no library would sign; signed with HS256."""
    parts = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in (header, claims)]
    text = b".".join(map(segment, parts))
    return (text + b"." + segment(hmac.digest(secret, text, hashlib.sha256))).decode()


def claims(**more: object) -> dict[str, object]:
    """Good claims, and more."""
    return {"userId": "alice", "exp": int(time.time()) + 600, **more}


def auth(**more: Any) -> config.Auth:  # noqa: ANN401
    """The [auth] section."""
    return config.Auth(**more)


def tokens(**more: Any) -> Tokens:  # noqa: ANN401
    """What verifies, with a key out of the configuration."""
    section = auth(**({} if "algorithms" in more else {"secret": SECRET}), **more)
    return Tokens(section, load_key(section))


async def user_id(verifier: Tokens, text: str) -> str:
    """The user that a token is for."""
    return await verifier.user_id(f"Bearer {text}")


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    """A database for this module; nobody but alice marks anything in it."""
    psql(cluster.url(), "create database tokens template template_migrated")
    return cluster.url("tokens", "bell")


@pytest.fixture(scope="module")
async def client(url: str) -> AsyncIterator[Client]:
    """A client of a service with a secret."""
    async with TestClient(Service(url, {})) as client:
        yield client


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


SUCCESS = (200, {"success": True}, None)


# Algorithms


@pytest.mark.parametrize("algorithm", HMAC)
@pytest.mark.parametrize("source", ["secret", "secret_file"])
async def test_a_secret_verifies(algorithm: str, source: str, tmp_path: Path) -> None:
    """HS256, HS384 and HS512 verify with the secret, also one out of a file, newline and all."""
    (tmp_path / "secret").write_text("s" * 64 + "\n")
    value = "s" * 64 if source == "secret" else str(tmp_path / "secret")
    verifier = tokens(algorithms=[algorithm], **{source: value})
    assert await user_id(verifier, jwt.encode(claims(), "s" * 64, algorithm)) == "alice"
    for other in set(HMAC) - {algorithm}:
        with pytest.raises(InvalidToken):
            await user_id(verifier, jwt.encode(claims(), "s" * 64, other))


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_public_key_file_verifies(algorithm: str, tmp_path: Path) -> None:
    """Each asymmetric algorithm verifies with its public key, and no other algorithm does."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private(algorithm)))
    verifier = tokens(algorithms=list(ASYMMETRIC), public_key_file=str(file))
    assert await user_id(verifier, signed(algorithm)) == "alice"
    only = tokens(algorithms=[algorithm], public_key_file=str(file))
    for other in set(ASYMMETRIC) - {algorithm}:
        with pytest.raises(InvalidToken):
            await user_id(only, signed(other))


async def test_a_key_set_verifies(url: str, key_server: "KeyServer") -> None:
    """Each asymmetric algorithm verifies with the key of its kid in a JWKS."""
    key_server.serve(*(jwk(private(name), f"key-{name}") for name in ASYMMETRIC))
    environ = {"AUTH_JWKS_URL": key_server.url, "AUTH_ALGORITHMS": ",".join(ASYMMETRIC)}
    async with TestClient(Service(url, environ)) as client:
        for name in ASYMMETRIC:
            assert await post(client, f"Bearer {signed(name, f'key-{name}')}") == SUCCESS
            other = "EdDSA" if name != "EdDSA" else "ES256"
            assert (await post(client, f"Bearer {signed(other, f'key-{name}')}"))[0] == 401


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_is_no_secret(algorithm: str, tmp_path: Path) -> None:
    """A token signed with HS256 and the text of the public key as secret is refused."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private(algorithm)))
    verifier = tokens(algorithms=list(ASYMMETRIC), public_key_file=str(file))
    for secret in (file.read_bytes(), file.read_bytes().strip()):
        with pytest.raises(InvalidToken):
            await user_id(verifier, forge({"alg": "HS256"}, claims(), secret))
    with pytest.raises(InvalidToken):
        await user_id(verifier, forge({"alg": algorithm}, claims(), file.read_bytes()))


# The header


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer   "])
async def test_the_scheme_is_case_insensitive(client: Client, scheme: str) -> None:
    """The scheme in any case, and one or more spaces (RFC 9110, section 11)."""
    assert await post(client, scheme + token()) == SUCCESS


@pytest.mark.parametrize(
    "header", ["Basic YWxpY2U6c2VjcmV0", "Digest a=b", "Token abc", "", "BearerX abc", "Bearer,abc"]
)
async def test_no_bearer_token_is_told_no_error(client: Client, header: str) -> None:
    """Without a bearer token the challenge names the scheme alone (RFC 6750, section 3.1)."""
    for values in ((), (header,)):
        status, body, challenge = await post(client, *values)
        assert (status, list(body), challenge) == (401, ["error"], "Bearer")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer \t",
        "Bearer a b",
        "Bearer a,b",
        "Bearer \u00e9",
        "Bearer \U0001f514",
        'Bearer "quoted"',
        "Bearer =",
        "Bearer \u0661",
    ],
)
async def test_a_malformed_token(client: Client, header: str) -> None:
    """What is not token68 after the scheme is refused (RFC 6750, section 2.1)."""
    assert await post(client, header) == refused("malformed token")


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


# The token

GOOD_HEADER = {"alg": "HS256", "typ": "JWT"}
DEEP = b'{"alg":"HS256","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NESTED = b'{"alg":"HS256","x":' + b"[" * 1_500 + b"]" * 1_500 + b"}"
HEADERS: dict[str, object] = {
    "alg none": {"alg": "none"},
    "alg None": {"alg": "None"},
    "alg of another secret's length": {"alg": "HS512"},
    "alg of a public key": {"alg": "RS256"},
    "alg unknown": {"alg": "HS257"},
    "alg missing": {"typ": "JWT"},
    "alg null": {"alg": None},
    "alg a list": {"alg": ["HS256"]},
    "kid a number": {"alg": "HS256", "kid": 1},
    "kid null": {"alg": "HS256", "kid": None},
    "kid an object": {"alg": "HS256", "kid": {}},
    "crit unknown": {"alg": "HS256", "crit": ["mfa"], "mfa": True},
    "crit empty": {"alg": "HS256", "crit": []},
    "crit no list": {"alg": "HS256", "crit": "exp"},
    "b64 false": {"alg": "HS256", "b64": False},
    "b64 false, declared": {"alg": "HS256", "b64": False, "crit": ["b64"]},
    "not an object": [],
    "a number": 1,
    "a string": "HS256",
    "null": None,
    "not JSON": b"{",
    "not UTF-8": b'{"alg":"HS256\xff"}',
    "empty": b"",
    "nested deeply": NESTED,
}
CLAIMS: dict[str, object] = {
    "no exp": {"userId": "alice"},
    "exp null": claims(exp=None),
    "exp a word": claims(exp="soon"),
    "exp digits in a string": claims(exp="99999999999"),
    "exp a list": claims(exp=[99999999999]),
    "exp an object": claims(exp={}),
    "exp infinite": b'{"userId":"alice","exp":1e999}',
    "exp Infinity": b'{"userId":"alice","exp":Infinity}',
    "exp NaN": b'{"userId":"alice","exp":NaN}',
    "exp with 5000 digits": b'{"userId":"alice","exp":' + b"9" * 5000 + b"}",
    "nbf in the future": claims(nbf=int(time.time()) + 3600),
    "nbf a word": claims(nbf="now"),
    "no user": {"exp": int(time.time()) + 600},
    "user null": claims(userId=None),
    "user a number": claims(userId=7),
    "user true": claims(userId=True),
    "user a list": claims(userId=["alice"]),
    "user empty": claims(userId=""),
    "user NUL": claims(userId="\0"),
    "user with NUL": claims(userId="alice\0"),
    "user a surrogate": claims(userId="\ud800"),
    "user too long": claims(userId="x" * (MAX_USER_ID_BYTES + 1)),
    "user of 5 KB": claims(userId="x" * 5000),
    "not an object": ["alice"],
    "a string": "alice",
    "null": None,
    "not JSON": b"alice",
    "not UTF-8": b'{"userId":"alice","exp":99999999999,"x":"\xff"}',
    "nested deeply": b'{"userId":"alice","exp":99999999999,"x":'
    + b"[" * 1_500
    + b"]" * 1_500
    + b"}",
    "empty": b"",
}
EXPIRED: dict[str, object] = {
    "past": claims(exp=int(time.time()) - 1),
    "past, with a fraction": claims(exp=time.time() - 1.5),
    "zero": claims(exp=0),
    "negative": claims(exp=-(10**30)),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_a_header_that_proves_nothing(client: Client, name: str) -> None:
    """A correct signature does not help a token whose header is wrong."""
    forged = forge(HEADERS[name], claims())
    assert await post(client, f"Bearer {forged}") == refused("invalid token")


@pytest.mark.parametrize("name", CLAIMS)
async def test_claims_that_prove_nothing(client: Client, name: str) -> None:
    """A correct signature does not help a token whose claims are wrong."""
    forged = forge(GOOD_HEADER, CLAIMS[name])
    assert await post(client, f"Bearer {forged}") == refused("invalid token")


@pytest.mark.parametrize("name", EXPIRED)
async def test_an_expired_token(client: Client, name: str) -> None:
    """A token that has ended says so, and so does not one that never was good."""
    forged = forge(GOOD_HEADER, EXPIRED[name])
    assert await post(client, f"Bearer {forged}") == refused("token expired")
    unsigned = forge(GOOD_HEADER, EXPIRED[name], b"another secret, as long as the right one")
    assert await post(client, f"Bearer {unsigned}") == refused("invalid token")


@pytest.mark.parametrize(
    "more",
    [
        {"exp": time.time() + 600.5},
        {"iat": 99999999999},
        {"iat": "yesterday"},
        {"aud": "another service", "iss": "https://elsewhere.example"},
        {"sub": 7, "orgId": "globex"},
        {"nbf": 0, "jti": "7"},
    ],
)
async def test_claims_that_do_not_matter(client: Client, more: dict[str, object]) -> None:
    """An exp may have a fraction; iat, and aud, iss and sub where not configured, are ignored."""
    assert await post(client, f"Bearer {forge(GOOD_HEADER, claims(**more))}") == SUCCESS


async def test_a_user_id_of_the_longest(client: Client) -> None:
    """The longest user id gets as far as the database, which does not know it."""
    longest = forge(GOOD_HEADER, claims(userId="\u00e9" * (MAX_USER_ID_BYTES // 2)))
    assert await post(client, f"Bearer {longest}") == refused("user not found")


def _tampered() -> dict[str, str]:
    header, payload, signature = token().split(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    other = token(user_id="owner").split(".")[1]
    return {
        "another payload": f"{header}.{other}.{signature}",
        "no signature": f"{header}.{payload}.",
        "signature cut": f"{header}.{payload}.{signature[:-4]}",
        "signature flipped": f"{header}.{payload}.{flipped}",
        "two segments": f"{header}.{payload}",
        "four segments": f"{header}.{payload}.{signature}.{signature}",
        "five segments": ".".join([header] * 5),
        "one segment": "abc",
        "dots": "..",
        "base64 of nothing": "=.=.=",
        "length no base64 has": f"{header}A.{payload}.{signature}",
        "not URL-safe": f"{header}.{payload}.+/+/",
        "detached": f"{header}..{signature}",
        "another secret": token(secret=SECRET + "!"),
        "all dots": "." * 2000,
    }


@pytest.mark.parametrize("name", _tampered())
async def test_a_token_tampered_with(client: Client, name: str) -> None:
    """Whatever is done to a good token, it is refused."""
    status, body, challenge = await post(client, f"Bearer {_tampered()[name]}")
    assert (status, challenge and challenge[:28]) == (401, 'Bearer error="invalid_token"')
    assert list(body) == ["error"]


async def test_a_header_longer_than_any_token(client: Client) -> None:
    """A token too long for HTTP is refused before it is looked at, in the usual shape."""
    status, body, _ = await post(client, f"Bearer {forge(DEEP, claims())}")
    assert (status, list(body)) == (400, ["error"])


@pytest.mark.parametrize("depth", [1_000, 10_000, 100_000])
async def test_nesting_of_any_depth(depth: int) -> None:
    """Recursion in a decoder is a refusal too, however large a header HTTP may let pass."""
    deep = b'{"alg":"HS256","x":' + b"[" * depth + b"]" * depth + b"}"
    for forged in (forge(deep, claims()), forge(GOOD_HEADER, deep)):
        with pytest.raises(InvalidToken):
            await user_id(tokens(), forged)


AUDIENCE = {"audience": ["bell", "desk"]}
ISSUER = {"issuer": "https://id.example"}


@pytest.mark.parametrize(
    ("section", "more", "good"),
    [
        (AUDIENCE, {"aud": "bell"}, True),
        (AUDIENCE, {"aud": ["x", "desk"]}, True),
        (AUDIENCE, {"aud": "x"}, False),
        (AUDIENCE, {"aud": ["x"]}, False),
        (AUDIENCE, {"aud": []}, False),
        (AUDIENCE, {"aud": 7}, False),
        (AUDIENCE, {"aud": ["bell", 7]}, False),
        (AUDIENCE, {}, False),
        (ISSUER, {"iss": "https://id.example"}, True),
        (ISSUER, {"iss": "https://id.example/"}, False),
        (ISSUER, {"iss": ["https://id.example"]}, False),
        (ISSUER, {"iss": 7}, False),
        (ISSUER, {}, False),
        ({**AUDIENCE, **ISSUER}, {"aud": "bell", "iss": "https://id.example"}, True),
        ({**AUDIENCE, **ISSUER}, {"aud": "bell"}, False),
        ({"user_claim": "sub"}, {"sub": "alice", "userId": None}, True),
        ({"user_claim": "sub"}, {"sub": 7}, False),
        ({"user_claim": "sub"}, {}, False),
    ],
)
async def test_what_is_configured_is_checked(
    section: dict[str, Any], more: dict[str, object], *, good: bool
) -> None:
    """Audience, issuer and the user claim, where configured."""
    forged = forge(GOOD_HEADER, claims(**more))
    with nullcontext() if good else pytest.raises(InvalidToken):
        assert await user_id(tokens(**section), forged) == "alice"


@pytest.mark.parametrize(
    ("claim", "seconds", "good"),
    [("exp", -30, True), ("exp", -61, False), ("nbf", 30, True), ("nbf", 120, False)],
)
async def test_clocks_may_differ_by_the_leeway(claim: str, seconds: int, *, good: bool) -> None:
    """A token that ended, or begins, within the leeway is accepted; beyond it is not."""
    forged = forge(GOOD_HEADER, claims(**{claim: int(time.time()) + seconds}))
    with nullcontext() if good else pytest.raises(InvalidToken):
        assert await user_id(tokens(leeway=60.0), forged) == "alice"
    with pytest.raises(InvalidToken):
        await user_id(tokens(), forged)


# The cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, each time they were."""
    seen: list[str] = []
    decode = jwt.decode

    def count(text: str, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        seen.append(text)
        return decode(text, *arguments, **more)

    monkeypatch.setattr(jwt, "decode", count)
    return seen


async def test_a_verified_token_is_not_verified_again(decoded: list[str]) -> None:
    """Verifying is paid for once; a token that was refused is remembered by nobody."""
    verifier, good, bad = tokens(), token(), token(secret=SECRET + "!")
    for _ in range(3):
        assert await user_id(verifier, good) == "alice"
        with pytest.raises(InvalidToken):
            await user_id(verifier, bad)
    assert decoded == [good, bad, bad, bad]


@pytest.mark.parametrize(
    ("leeway", "after", "times"), [(0.0, 599, 1), (0.0, 600, 2), (60.0, 659, 1), (60.0, 660, 2)]
)
async def test_a_token_is_not_remembered_past_its_end(
    decoded: list[str], monkeypatch: pytest.MonkeyPatch, leeway: float, after: int, times: int
) -> None:
    """A remembered token is verified anew from its exp on, later by the leeway."""
    start = int(time.time())
    clock = [start]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    verifier, good = tokens(leeway=leeway), forge(GOOD_HEADER, claims(exp=start + 600))
    await user_id(verifier, good)
    clock.append(clock.pop() + after)
    await user_id(verifier, good)
    assert decoded == [good] * times


async def test_the_cache_is_bounded(decoded: list[str]) -> None:
    """Of more tokens than the cache holds, the one used longest ago is verified anew."""
    verifier = tokens(cache_size=2)
    first, second, third = (token(user_id=name) for name in ("alice", "bob", "gina"))
    for each in (first, second, first, third, first):
        await user_id(verifier, each)
    assert decoded == [first, second, third]
    await user_id(verifier, second)
    assert decoded[3:] == [second]


# Keys from a URL


class KeyServer:
    """Serves a key set; tests change what it answers."""

    url: str

    def __init__(self) -> None:
        """Serve no keys yet."""
        self.fetched = 0
        self.visited = asyncio.Event()
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._document
        self._keys: tuple[object, ...] = ()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Count, and answer."""
        self.fetched += 1
        self.visited.set()
        return await self.answer(request)

    def serve(self, *keys: object) -> None:
        """Answer with these keys from now on."""
        self._keys, self.answer = keys, self._document

    async def _document(self, _: web.Request) -> web.Response:
        return web.json_response({"keys": self._keys})


@pytest.fixture
async def key_server(aiohttp_server: AiohttpServer) -> KeyServer:
    """A server of keys on loopback."""
    keys, app = KeyServer(), web.Application()
    app.router.add_get("/keys", keys.handle)
    server = await aiohttp_server(app)
    keys.url = str(server.make_url("/keys"))
    return keys


BOTH, KIDS = ("ES256", "RS256"), ("first", "second")
FIRST, SECOND = (jwk(private(name), kid) for name, kid in zip(BOTH, KIDS, strict=True))


async def known(jwks: Jwks, *kids: str | None) -> list[bool]:
    """Which of the kids lead to a key."""
    return [await jwks.find(kid) is not None for kid in kids]


async def test_an_unknown_kid_fetches_once(key_server: KeyServer) -> None:
    """After a rotation the first tokens with the new key cause one fetch, which they all share."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    assert await known(jwks, "first") == [True]
    key_server.serve(FIRST, SECOND)
    found = await asyncio.gather(*(jwks.find("second") for _ in range(20)), jwks.find("third"))
    assert [key is not None for key in found] == [True] * 20 + [False]
    assert key_server.fetched == 2


async def test_unknown_kids_wait_for_a_cool_down(key_server: KeyServer) -> None:
    """Made-up kids cannot make the service hammer the key server."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=3600)
    assert await known(jwks, "first", *map(str, range(20))) == [True] + [False] * 20
    key_server.serve(FIRST, SECOND)
    assert await known(jwks, "second") == [False]
    assert key_server.fetched == 1


async def test_the_set_is_fetched_on_a_timer(key_server: KeyServer) -> None:
    """A new set arrives without anybody asking for it, and who keeps a cache hears of it."""
    key_server.serve(FIRST)
    changed: asyncio.Queue[list[bool]] = asyncio.Queue()
    jwks = Jwks(key_server.url, BOTH, refresh=0.01, cooldown=3600)
    jwks.on_change = lambda: changed.put_nowait([])
    async with jwks.run():
        await changed.get()
        key_server.serve(SECOND)
        await changed.get()
        assert await known(jwks, "first", "second") == [False, True]
        for _ in range(2):
            key_server.visited.clear()
            await key_server.visited.wait()
    assert changed.empty()


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
    response._compression_force = web.ContentCoding.gzip  # noqa: SLF001 - though nobody accepts it
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


def text(body: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A 200 with any body."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return answer


SHORT = 0.1  # seconds that a fetch may take, where it is sure to take longer
FAILING: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "error": gone,
    "redirect": elsewhere,
    "too large": huge,
    "endless": endless,
    "compressed": compressed,
    "dropped": dropped,
    "stalled": stalled,
    "empty": text(b""),
    "no JSON": text(b"<html>"),
    "no UTF-8": text(b'{"keys":["\xff"]}'),
    "a list": text(b"[]"),
    "no keys": text(b"{}"),
    "keys no list": text(b'{"keys":{}}'),
    "no key left": text(b'{"keys":[]}'),
    "no key of use": text(b'{"keys":[1,null,"x",[],{}]}'),
    "nested deeply": text(b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_fetch_that_fails_changes_nothing(key_server: KeyServer, name: str) -> None:
    """Known keys stay known whatever the key server does, and when it is well again it is heard."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    assert await known(jwks, "first") == [True]
    key_server.answer, jwks.fetch_timeout = FAILING[name], SHORT if name == "stalled" else 5.0
    assert await known(jwks, "second", "first") == [False, True]
    key_server.serve(FIRST, SECOND)
    jwks.fetch_timeout = 5.0
    assert await known(jwks, "second") == [True]


@pytest.mark.parametrize("name", FAILING)
async def test_no_keys_yet(key_server: KeyServer, name: str) -> None:
    """Before the first set is there, a token can be neither accepted nor refused."""
    key_server.answer = FAILING[name]
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    jwks.fetch_timeout = SHORT if name == "stalled" else 5.0
    for kid in ("second", None):
        with pytest.raises(Unavailable):
            await jwks.find(kid)
    assert not jwks.ready
    key_server.serve(SECOND)
    jwks.fetch_timeout = 5.0
    assert await known(jwks, "second") == [True]
    assert jwks.ready


async def test_a_stalled_fetch_keeps_nobody_else_waiting(key_server: KeyServer) -> None:
    """Tokens with a known kid pass while a fetch hangs; only the others wait for it."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH, cooldown=0)
    await jwks.find("first")
    go_on = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.json_response({"keys": [SECOND]})

    key_server.answer = hang
    key_server.visited.clear()
    waiting = asyncio.create_task(jwks.find("second"))
    await key_server.visited.wait()
    assert await known(jwks, "first") == [True]
    assert not waiting.done()
    go_on.set()
    assert await waiting is not None


async def test_a_caller_that_leaves_does_not_end_the_fetch(key_server: KeyServer) -> None:
    """The fetch belongs to all who wait for it."""
    key_server.serve(FIRST)
    jwks = Jwks(key_server.url, BOTH)
    leaves, stays = (asyncio.create_task(jwks.find("first")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays is not None
    assert key_server.fetched == 1


OCT = {"kty": "oct", "kid": "second", "k": segment(SECRET.encode()).decode()}


@pytest.mark.parametrize(
    ("key", "usable"),
    [
        (SECOND, True),
        ({**SECOND, "use": "sig"}, True),
        ({**SECOND, "alg": "RS256"}, True),
        ({**SECOND, "x5c": ["junk"], "ext": True}, True),
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
        ({**jwk(private("ES384"), "second")}, False),
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
    jwks = Jwks(key_server.url, BOTH, cooldown=3600)
    assert await known(jwks, "first", "second") == [True, usable]


@pytest.mark.parametrize(
    ("kids", "kid", "found"),
    [
        (["a"], "a", True),
        (["a"], None, True),
        (["a"], "b", False),
        ([None], None, True),
        ([None], "a", False),
        (["a", "b"], None, False),
        (["a", None], None, False),
        (["a", None], "a", True),
    ],
)
async def test_a_kid_on_either_side(
    key_server: KeyServer, kids: list[str | None], kid: str | None, *, found: bool
) -> None:
    """A token without a kid means the only key there is; one with a kid means just that key."""
    key_server.serve(*(jwk(private("ES256"), each) for each in kids))
    assert await known(Jwks(key_server.url, BOTH, cooldown=3600), kid) == [found]


class Impatient(Jwks):
    """Fetches for each token with an unknown kid."""

    def __init__(self, url: str, algorithms: list[str]) -> None:
        """Have no cool-down."""
        super().__init__(url, algorithms, cooldown=0)


async def test_a_key_withdrawn_is_forgotten(
    url: str, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token accepted before is refused once its key has left the set, cache or not."""
    monkeypatch.setattr("service.app.Jwks", Impatient)
    key_server.serve(FIRST)
    environ = {"AUTH_JWKS_URL": key_server.url, "AUTH_ALGORITHMS": "ES256,RS256"}
    async with TestClient(Service(url, environ)) as client:
        before, after = (f"Bearer {signed(*pair)}" for pair in zip(BOTH, KIDS, strict=True))
        assert await post(client, before) == SUCCESS
        key_server.serve(SECOND)
        assert await post(client, before) == SUCCESS
        assert await post(client, after) == SUCCESS
        assert await post(client, before) == refused("token signed with an unknown key")


async def test_the_key_server_is_down_at_the_start(
    url: str, key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys the answer is 503, here and at /ready; with them it is 200."""
    monkeypatch.setattr("service.app.Jwks", Impatient)
    key_server.answer = gone
    environ = {"AUTH_JWKS_URL": key_server.url, "AUTH_ALGORITHMS": "ES256"}
    service = Service(url, environ)
    async with TestClient(service) as client:
        good = f"Bearer {signed('ES256', 'first')}"
        async with client.post(
            "/systemevent/read", json={"id": 1}, headers={"Authorization": good}
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert list(await answer.json()) == ["error"]
        async with client.session.get(f"{service.admin}/ready") as answer:
            assert (answer.status, list(await answer.json())) == (503, ["error"])
        key_server.serve(FIRST)
        assert await post(client, good) == SUCCESS
