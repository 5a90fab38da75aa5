"""Tokens and key sets of every kind, good and bad, and a server of key sets."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.conftest import SECRET

ASYMMETRIC = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def private(algorithm: str, number: int = 0) -> Private:
    """The key that signs with that algorithm, or another of the kind for another number."""
    return _generate("RSA" if algorithm[:2] in ("RS", "PS") else algorithm, number)


@cache
def _generate(kind: str, _: int) -> Private:
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind])
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    return ed25519.Ed25519PrivateKey.generate()


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


def signed(algorithm: str, kid: str | None = None, number: int = 0, **more: object) -> str:
    """A good token for alice, by private(algorithm, number)."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**more), private(algorithm, number), algorithm, headers)


def claims(**more: object) -> dict[str, object]:
    """Good claims, and more."""
    return {"userId": "alice", "exp": int(time.time()) + 86_400, **more}


def segment(part: bytes) -> bytes:
    """One of the three parts of a token."""
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def forge(header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
    """A token of any header and claims, even ones no library would sign; signed with HS256."""
    parts = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in (header, payload)]
    text = b".".join(map(segment, parts))
    return (text + b"." + segment(hmac.digest(secret, text, hashlib.sha256))).decode()


class KeyServer:
    """Serves a key set; tests change what it answers."""

    url: str

    def __init__(self) -> None:
        """Serve no keys yet."""
        self.fetched = 0
        self.visited = asyncio.Event()
        self.answer: Answer = self._document
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


@contextlib.asynccontextmanager
async def serve_keys(**options: Any) -> AsyncIterator[KeyServer]:
    """Run a server of keys on loopback; `options` as for aiohttp, such as ssl."""
    keys, app = KeyServer(), web.Application()
    app.router.add_get("/keys", keys.handle)
    server = TestServer(app)
    try:
        await server.start_server(**options)
        keys.url = str(server.make_url("/keys"))
        yield keys
    finally:
        await server.close()
