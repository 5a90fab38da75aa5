"""The keys that verify tokens, from a JWKS URL."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import jwt
import msgspec

from service.errors import Unavailable
from service.keys import Key, fit

log = logging.getLogger(__name__)


@dataclass
class Jwks:
    """The key set at a URL (RFC 7517), fetched on a timer and when a token names an unknown key.

    A fetch that fails, or yields no key that can be used, changes nothing.
    """

    url: str
    algorithms: Sequence[str]
    on_change: Callable[[], None] = lambda: None
    refresh: float = 300.0  # seconds between fetches
    cooldown: float = 10.0  # seconds in which unknown keys cause no further fetch
    fetch_timeout: float = 5.0
    max_bytes: int = 256 * 1024
    _keys: list[tuple[str | None, Key]] = field(default_factory=list)
    _document: object = None
    _fetch: asyncio.Task[None] | None = None
    _fetched_at: float = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether a key set was ever fetched."""
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

    async def find(self, kid: str | None) -> Key | None:
        """Return the key of that id, or, for a token that names none, the only key there is."""
        key = self._known(kid)
        if key is None:
            await self._refetch(unless_within=self.cooldown)
            key = self._known(kid)
        if key is None and not self._keys:
            raise Unavailable("the keys that verify tokens are not available, try again later")
        return key

    def _known(self, kid: str | None) -> Key | None:
        if kid is None:
            return self._keys[0][1] if len(self._keys) == 1 else None
        return next((key for known, key in self._keys if known == kid), None)

    async def _refresh_for_ever(self) -> None:
        while True:
            await self._refetch()
            await asyncio.sleep(self.refresh if self._keys else min(1.0, self.refresh))

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
            document = await self._download()
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            log.warning("cannot fetch auth.jwks_url: %s", type(error).__name__)
            return
        keys = [
            (kid if isinstance(kid := jwk.get("kid"), str) else None, key)
            for jwk in document
            if isinstance(jwk, dict) and (key := _parse(jwk, self.algorithms))
        ]
        if not keys:
            log.warning("auth.jwks_url: no key for signatures that fits auth.algorithms")
        elif document != self._document:
            self._document, self._keys = document, keys
            self.on_change()
            log.info("auth.jwks_url: %d keys", len(keys))

    async def _download(self) -> list[Any]:
        """Fetch the members of "keys"; bounded in time and size, nothing followed or inflated."""
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.fetch_timeout),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
            ) as session,
            session.get(self.url, allow_redirects=False) as response,
        ):
            body = b""
            if response.status != HTTPStatus.OK or "Content-Encoding" in response.headers:
                raise ValueError("not a plain 200")
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self.max_bytes:
                    raise ValueError("too large")
        keys = msgspec.json.decode(body, type=dict[str, Any]).get("keys")
        if not isinstance(keys, list):
            raise ValueError("no key set")  # noqa: TRY004 - a value from outside, not a caller's type
        return keys


def _parse(jwk: dict[str, Any], algorithms: Sequence[str]) -> Key | None:
    """The key in a JWK; None for one that is of no use here."""
    if jwk.get("use", "sig") != "sig" or jwk.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    wanted = [name for name in algorithms if jwk.get("alg", name) == name]
    try:
        key = fit(jwt.PyJWK(jwk).key, wanted)
    except Exception as error:  # noqa: BLE001 - one malformed key must not cost us the others
        log.warning("auth.jwks_url: skipped a malformed key: %s", type(error).__name__)
        return None
    return key if key.algorithms else None
