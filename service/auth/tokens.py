"""Verifies bearer tokens (JWT, RFC 7519) and says which user they are for."""

import contextlib
import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any

import jwt
from cachetools import LRUCache

from service import config
from service.auth.keys import Key, Keys, expand, load_key
from service.config import UNSTORABLE
from service.errors import ConfigError, InvalidToken, Unauthenticated, Unavailable

# RFC 6750, section 2.1; a scheme is case-insensitive (RFC 9110, section 11.1)
CREDENTIALS = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE | re.ASCII)
MAX_USER_ID_BYTES = 255  # a statement repeats it for each id
LIFETIME = 3600  # seconds, of the tokens that sign() makes


class Tokens:
    """Verifies tokens, and remembers those it has verified.

    Verifying costs more than all the rest of a request. What was verified is remembered by the
    BLAKE2s digest (SHA-256 takes longer) of "Bearer " and the token, never longer than the token
    is valid.
    """

    def __init__(self, auth: config.Auth, keys: Keys) -> None:
        """Verify with `keys`, as `auth` says."""
        self._auth = auth
        self._keys = keys
        self._issuers = auth.issuers or None
        self._algorithms = expand(auth.algorithms)
        # digest -> (user id, time at which the token ends)
        self._verified: LRUCache[bytes, tuple[str, float]] = LRUCache(auth.cache_size)
        self.hits = self.misses = 0  # tokens that were remembered, and those that were not
        self._options: Any = {
            "require": ["exp", auth.user_claim],
            "verify_aud": bool(auth.audience),
            "verify_iat": False,  # says when it was made, not when it holds (section 4.1.6)
            "verify_sub": False,  # the user claim has its own check
            "verify_jti": False,  # of any type
        }

    @property
    def remembered(self) -> int:
        """How many tokens are."""
        return len(self._verified)

    def forget(self) -> None:
        """Verify every token anew: the keys have changed."""
        self._verified.clear()

    async def user_id(self, credentials: str) -> str:
        """Return the user that the value of an Authorization header is for.

        Raises:
            Unauthenticated: it holds no bearer token.
            InvalidToken: the token is not valid, or not any more.
            Unavailable: there is no key yet to verify it with.
        """
        digest = hashlib.blake2s(credentials.encode(errors="surrogateescape")).digest()
        try:
            user_id, end = self._verified[digest]
        except KeyError:
            end = 0.0
        if end <= time.time():
            user_id, _ = await self._verify(_token(credentials))
        else:
            self.hits += 1
        return user_id

    async def _verify(self, token: str) -> tuple[str, float]:
        """Return the user of a token, and the time at which it ends."""
        digest = hashlib.blake2s(f"Bearer {token}".encode()).digest()
        known = self._verified.get(digest)
        if known is None or known[1] <= time.time():
            self.misses += 1
            known = self._verified[digest] = await self._check(token)
        else:
            self.hits += 1
        return known

    async def _check(self, token: str) -> tuple[str, float]:
        auth = self._auth
        try:
            # PyJWT looks at each character of a token, and so again for each key: not for this.
            header = jwt.get_unverified_header(token.partition(".")[0] + "..")
            if header["alg"] not in self._algorithms:
                raise InvalidToken("invalid token", "algorithm")
            keys = await self._keys.find(header.get("kid"), header["alg"])
            if not keys:
                raise InvalidToken("token signed with an unknown key", "unknown key")
            claims = self._decode(token, keys)
            if auth.client_claim and claims.get(auth.client_claim) not in auth.clients:
                raise InvalidToken("invalid token", "claim client")
            return _user_id(claims[auth.user_claim]), _end(claims["exp"]) + auth.leeway
        except (InvalidToken, Unavailable):
            raise
        except jwt.ExpiredSignatureError:
            raise InvalidToken("token expired", "expired") from None
        except Exception as error:  # noqa: BLE001 - whatever a hostile token makes a decoder raise
            raise InvalidToken("invalid token", _cause(error)) from None

    def _decode(self, token: str, keys: Sequence[Key]) -> dict[str, Any]:
        """Verify with the first of the keys that has signed it; return the claims."""
        auth = self._auth
        for key in keys:
            with contextlib.suppress(jwt.InvalidSignatureError):
                return jwt.decode(
                    token,
                    key.material,
                    algorithms=key.algorithms,
                    audience=auth.audience or None,
                    issuer=self._issuers,
                    leeway=auth.leeway,
                    options=self._options,
                )
        raise InvalidToken("invalid token", "signature")


def _token(credentials: str) -> str:
    """The token in the value of an Authorization header."""
    match = CREDENTIALS.fullmatch(credentials)
    if match is None:
        if credentials[:7].lower().rstrip() == "bearer":
            raise InvalidToken("malformed token", "malformed")
        raise Unauthenticated("authentication required: not a bearer token")
    return match[1]


def _end(claim: object) -> float:
    """Check that an exp is a number (RFC 7519, section 2); PyJWT takes text as well."""
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        raise InvalidToken("invalid token", "claim exp")
    return float(claim)


def _user_id(claim: object) -> str:
    """Check that a claim can be a user id: text that PostgreSQL can hold."""
    if (
        not isinstance(claim, str)
        or not 0 < len(claim.encode(errors="replace")) <= MAX_USER_ID_BYTES
        or UNSTORABLE.search(claim)
    ):
        raise InvalidToken("invalid token", "claim user")
    return claim


def _cause(error: Exception) -> str:
    """Why a token is refused, in a few fixed words: none of them comes from the token."""
    match error:
        case jwt.MissingRequiredClaimError(claim="exp" | "aud" | "iss" as claim):
            return f"claim {claim}"
        case jwt.MissingRequiredClaimError():
            return "claim user"
        case jwt.InvalidAudienceError():
            return "claim aud"
        case jwt.InvalidIssuerError():
            return "claim iss"
        case jwt.ImmatureSignatureError():
            return "claim nbf"
        case _:
            return "malformed"


def sign(auth: config.Auth, user_id: str) -> str:
    """Sign a token for a user, valid for an hour: for trying things, and for the demo.

    Raises:
        ConfigError: there is no secret to sign with; whoever has the private key signs.
    """
    if not auth.algorithms[0].startswith("HS"):
        raise ConfigError("auth.algorithms: tokens can be signed here only with a secret")
    claims: dict[str, object] = {auth.user_claim: user_id, "exp": int(time.time()) + LIFETIME}
    if auth.audience:
        claims["aud"] = auth.audience[0]
    if auth.issuers:
        claims["iss"] = auth.issuers[0]
    if auth.client_claim:
        claims[auth.client_claim] = auth.clients[0]
    return jwt.encode(claims, load_key(auth).keys[0].material, auth.algorithms[0])
