"""The keys that verify tokens, from a JWKS URL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import algorithms as jwa

from service.auth.keys import MAX_CANDIDATES, Key, fit
from service.errors import Unavailable
from service.observing import KeySetEnded, KeySetFailed, KeySetFetched, KeySkipped, Observers

AT_ONCE = 50  # keys that are read before the loop has its turn: a millisecond
BOM = b"\xef\xbb\xbf"
TYPES: dict[object, Any] = {
    "RSA": jwa.RSAAlgorithm,
    "EC": jwa.ECAlgorithm,
    "OKP": jwa.OKPAlgorithm,
}


class _NoKeySet(Exception):
    """What was fetched is of no use; the text says why, and quotes nothing of it."""


@dataclass
class Jwks:
    """The key set at a URL (RFC 7517), fetched on a timer and when a token names an unknown key.

    A fetch that fails, or yields no key that can be used, changes nothing; but keys that no fetch
    has confirmed for `max_age` are not used any more.
    """

    url: str
    algorithms: Sequence[str]
    on_change: Callable[[], None] = lambda: None  # called when a key is no longer valid
    observers: Observers = field(default_factory=Observers)
    max_age: float = 3600.0  # seconds
    refresh: float = 300.0  # seconds between fetches
    cooldown: float = 2.0  # seconds after a fetch in which unknown keys cause no further one
    fetch_timeout: float = 5.0  # seconds
    max_bytes: int = 256 * 1024
    _keys: list[tuple[str | None, Key]] = field(default_factory=list)
    _fetch: asyncio.Task[None] | None = None
    _fetched_at: float = float("-inf")
    _succeeded: bool = False
    _expiry: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a key set, and it is not too old."""
        return bool(self._keys)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keep the set fresh while the context lasts."""
        timer = asyncio.create_task(self._refresh_for_ever())
        try:
            yield
        finally:
            timer.cancel()
            if self._fetch:
                self._fetch.cancel()
            await asyncio.gather(timer, *filter(None, [self._fetch]), return_exceptions=True)
            if self._expiry:
                self._expiry.cancel()

    async def find(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        """Return the keys of that id, or all where a token names none, that fit its `alg`.

        Providers give several keys one id: one for each algorithm, or one for encryption.

        Raises:
            Unavailable: there is no key set, or none that a fetch has confirmed for so long.
        """
        found = self._known(kid, algorithm)
        if not found:
            await self._refetch(unless_within=self.cooldown)
            found = self._known(kid, algorithm)
        if not self._keys:
            raise Unavailable(
                "the keys that verify tokens are not available, try again later", "no keys"
            )
        return found

    def _known(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        return [
            key for known, key in self._keys if kid in (None, known) and algorithm in key.algorithms
        ][:MAX_CANDIDATES]

    async def _refresh_for_ever(self) -> None:
        while True:
            await self._refetch()
            pause = min(self.refresh, self.max_age / 4)
            if not self._succeeded:
                pause = min(pause, 15.0 if self._keys else 1.0)
            await asyncio.sleep(pause)

    async def _refetch(self, unless_within: float = 0.0) -> None:
        """Fetch, or wait for the fetch that is under way."""
        if self._fetch is None or self._fetch.done():
            now = asyncio.get_running_loop().time()
            if now - self._fetched_at < unless_within:
                return
            self._fetched_at = now
            self._fetch = asyncio.create_task(self._fetch_once())
        await asyncio.shield(self._fetch)

    async def _fetch_once(self) -> None:
        try:
            keys = await self._usable(await self._download())
        except Exception as error:  # noqa: BLE001 - whatever a key server makes a client raise
            self._succeeded = False
            host = urlsplit(self.url).netloc.rpartition("@")[2]
            self.observers.tell(KeySetFailed(host, _reason(error)))
            return
        self._succeeded = True
        if self._expiry:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(self.max_age, self._expire)
        before, self._keys = self._keys, keys
        # Keys have no hash, and to look for each in a list takes seconds where there are thousands.
        if keys != before and not set(map(_identity, before)) <= set(map(_identity, keys)):
            self.on_change()
        self.observers.tell(KeySetFetched(len(keys), changed=keys != before))

    def _expire(self) -> None:
        self.observers.tell(KeySetEnded(self.max_age))
        self._keys = []
        self.on_change()

    async def _download(self) -> list[Any]:
        """Fetch the members of "keys"; bounded in time and size, nothing followed or inflated."""
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.fetch_timeout),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
            ) as session,
            session.get(self.url, allow_redirects=False, proxy=_proxy(self.url)) as response,
        ):
            body = b""
            if response.status != HTTPStatus.OK:
                raise _NoKeySet(f"HTTP {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _NoKeySet("compressed")
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self.max_bytes:
                    raise _NoKeySet("too large")
        try:
            keys = msgspec.json.decode(body.removeprefix(BOM), type=dict[str, Any]).get("keys")
        except (ValueError, RecursionError):
            raise _NoKeySet("not a JSON object") from None
        if not isinstance(keys, list):
            raise _NoKeySet('no "keys" in it')
        return keys

    async def _usable(self, document: list[Any]) -> list[tuple[str | None, Key]]:
        keys: list[tuple[str | None, Key]] = []
        for number, jwk in enumerate(document):
            if not number % AT_ONCE:
                await asyncio.sleep(0)
            if isinstance(jwk, dict) and (key := self._parse(jwk)):
                keys.append((kid if isinstance(kid := jwk.get("kid"), str) else None, key))
        if not keys:
            raise _NoKeySet("no key for signatures that fits auth.algorithms")
        return keys

    def _parse(self, jwk: dict[str, Any]) -> Key | None:
        """The key in a JWK, None where of no use. Providers write null and "" for "not said"."""
        kind, use, named, operations = (jwk.get(name) for name in ("kty", "use", "alg", "key_ops"))
        if kind not in tuple(TYPES) or (use and use != "sig"):
            return None
        try:
            if operations is not None and "verify" not in operations:
                return None
            key = fit(TYPES[kind].from_jwk(jwk), self.algorithms, named or None)
        except Exception as error:  # noqa: BLE001 - one malformed key must not cost us the others
            self.observers.tell(KeySkipped(type(error).__name__))
            return None
        return key if key.algorithms else None


def _identity(known: tuple[str | None, Key]) -> tuple[str | None, bytes, tuple[str, ...]]:
    kid, key = known
    material = key.material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return kid, material, tuple(key.algorithms)


def _proxy(url: str) -> str | None:
    """HTTPS_PROXY, where NO_PROXY does not except the host; aiohttp would read ~/.netrc as well."""
    parts = urlsplit(url)
    if parts.scheme != "https" or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = getproxies().get("https")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _reason(error: Exception) -> str:
    """What went wrong, without a word of what was fetched."""
    if isinstance(error, _NoKeySet):
        return str(error)
    detail = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
