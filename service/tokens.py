"""Verifies bearer tokens (JWT, RFC 7519) and says which user they are for."""

import hashlib
import re
import time
from typing import Any

import jwt
from cachetools import LRUCache

from service import config
from service.errors import ConfigError, InvalidToken, Unauthenticated, Unavailable
from service.keys import Keys, load_key

# RFC 6750, section 2.1; a scheme is case-insensitive (RFC 9110, section 11.1)
CREDENTIALS = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE | re.ASCII)
MAX_USER_ID_BYTES = 255  # a statement repeats it for each id
LIFETIME = 3600  # seconds, of the tokens that sign() makes


class Tokens:
    """Verifies tokens, and remembers those it has verified.

    Verifying costs more than all the rest of a request. What was verified is remembered by the
    SHA-256 of its header, never longer than the token is valid.
    """

    def __init__(self, auth: config.Auth, keys: Keys) -> None:
        """Verify with `keys`, as `auth` says."""
        self._auth = auth
        self._keys = keys
        # digest -> (user id, time at which the token ends)
        self._verified: LRUCache[bytes, tuple[str, float]] = LRUCache(auth.cache_size)
        self._options: Any = {
            "require": ["exp", auth.user_claim],
            "verify_aud": bool(auth.audience),
            "verify_iat": False,  # says when it was made, not when it holds (section 4.1.6)
            "verify_sub": False,  # the user claim has its own check
        }

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
        digest = hashlib.sha256(credentials.encode(errors="surrogateescape")).digest()
        known = self._verified.get(digest)
        if known is None or known[1] <= time.time():
            known = await self._verify(_token(credentials))
            self._verified[digest] = known
        return known[0]

    async def _verify(self, token: str) -> tuple[str, float]:
        auth = self._auth
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._keys.find(kid)
            if key is None:
                raise InvalidToken("token signed with an unknown key")  # noqa: TRY301 - passes below
            claims = jwt.decode(
                token,
                key.material,
                algorithms=key.algorithms,
                audience=auth.audience or None,
                issuer=auth.issuer or None,
                leeway=auth.leeway,
                options=self._options,
            )
            return _user_id(claims[auth.user_claim]), _end(claims["exp"]) + auth.leeway
        except (InvalidToken, Unavailable):
            raise
        except jwt.ExpiredSignatureError:
            raise InvalidToken("token expired") from None
        except Exception:  # noqa: BLE001 - whatever a hostile token makes a decoder raise
            raise InvalidToken("invalid token") from None


def _token(credentials: str) -> str:
    """The token in the value of an Authorization header."""
    match = CREDENTIALS.fullmatch(credentials)
    if match is None:
        if credentials[:7].lower().rstrip() == "bearer":
            raise InvalidToken("malformed token")
        raise Unauthenticated("authentication required: not a bearer token")
    return match[1]


def _end(claim: object) -> float:
    """Check that an exp is a number (RFC 7519, section 2); PyJWT takes text as well."""
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        raise InvalidToken("invalid token")
    return float(claim)


def _user_id(claim: object) -> str:
    """Check that a claim can be a user id: text that PostgreSQL can hold."""
    if (
        not isinstance(claim, str)
        or not 0 < len(claim.encode()) <= MAX_USER_ID_BYTES  # a lone surrogate raises
        or "\0" in claim
    ):
        raise InvalidToken("invalid token")
    return claim


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
    if auth.issuer:
        claims["iss"] = auth.issuer
    return jwt.encode(claims, load_key(auth).key.material, auth.algorithms[0])
