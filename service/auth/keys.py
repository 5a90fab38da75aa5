"""The keys that verify tokens, and their fixed sources: a secret, or a file of keys."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service import config
from service.errors import ConfigError
from service.observing import KeyFileFailed, KeyFileRead, Observers

INTERVAL = 1.0  # seconds between two looks at a file of keys
MAX_CANDIDATES = 8  # keys that are tried for one token; each costs up to 0.3 ms
PEM = b"-----BEGIN "
MIN_RSA_BITS = 2048  # RFC 7518, section 3.3
EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ED25519 = ("EdDSA", "Ed25519")  # one algorithm of two names (RFC 9864, section 2.2)

with contextlib.suppress(ValueError):  # a PyJWT that knows the newer name
    jwt.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())


@dataclass(frozen=True)
class Key:
    """A key, and the algorithms it may verify: what is configured, and fits the key's type."""

    material: Any
    algorithms: Sequence[str]


class Keys(Protocol):
    """A source of keys."""

    async def find(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        """Return the few keys that can verify a token with this `kid` and `alg` in its header.

        Raises:
            Unavailable: no keys are known yet.
        """

    @property
    def ready(self) -> bool:
        """Whether tokens can be verified."""


@dataclass
class FixedKeys:
    """The keys of a secret, or of a file: the first signs, all verify, whatever kid a token names.

    A file is read again when its content changes. It is compared on a timer: a mounted secret is
    replaced by a link, which no watch on the file sees. One that cannot be used changes nothing.
    """

    auth: config.Auth
    keys: Sequence[Key]
    content: bytes  # of the file
    on_change: Callable[[], None] = lambda: None  # called when a key is no longer valid
    ready: bool = True
    observers: Observers = field(default_factory=Observers)

    async def find(self, kid: str | None, algorithm: str) -> Sequence[Key]:
        """Return the keys that fit."""
        return [key for key in self.keys if algorithm in key.algorithms]

    def look(self) -> None:
        """Take what is in the file now, if it can be used: for a master of workers."""
        with contextlib.suppress(Exception):  # the workers say what is wrong with the file
            if (content := _read(self.auth)) != self.content:
                self.keys, self.content = _parse(self.auth, content), content

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Follow the file, if there is one, while the context lasts."""
        watch = asyncio.create_task(self._follow()) if _file(self.auth) else None
        try:
            yield
        finally:
            if watch:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    async def _follow(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                content = await asyncio.to_thread(_read, self.auth)
                if content != self.content:
                    self._take(_parse(self.auth, content), content)
                told = ""
            except Exception as error:  # noqa: BLE001 - whatever a file does, the next may be good
                reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
                if reason != told:
                    self.observers.tell(KeyFileFailed(reason))
                told = reason

    def _take(self, keys: Sequence[Key], content: bytes) -> None:
        before, self.keys, self.content = self.keys, keys, content
        self.observers.tell(KeyFileRead(f"auth.{_file(self.auth)}", len(keys)))
        if any(key not in keys for key in before):
            self.on_change()


def load_key(auth: config.Auth) -> FixedKeys:
    """Take the secrets, or read them or the public keys from their file.

    Raises:
        ConfigError: the file cannot be read, or holds a key that does not fit auth.algorithms.
    """
    content = _read(auth)
    return FixedKeys(auth, _parse(auth, content), content)


def _file(auth: config.Auth) -> str | None:
    """The name of the key that names the file."""
    return next((name for name in ("public_key_file", "secret_file") if getattr(auth, name)), None)


def _read(auth: config.Auth) -> bytes:
    name = _file(auth)
    try:
        return Path(getattr(auth, name)).read_bytes() if name else b""
    except OSError as error:
        raise ConfigError(f"auth.{name}: {error.strerror}") from None


def _parse(auth: config.Auth, content: bytes) -> Sequence[Key]:
    """The keys of the configuration, or in the content of the file that it names."""
    if auth.public_key_file:
        keys = [_public_key(block, auth.algorithms) for block in _blocks(content)]
    elif auth.secret_file:
        if PEM in content:
            raise ConfigError("auth.secret_file: a key in PEM or SSH format is not a secret")
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        keys = [_secret("auth.secret_file", line, auth.algorithms) for line in lines or [b""]]
    else:
        keys = [
            _secret(f"auth.{name}", text.encode(), auth.algorithms)
            for name in ("secret", "previous_secret")
            if (text := getattr(auth, name)) or name == "secret"
        ]
    if len(keys) > MAX_CANDIDATES:
        raise ConfigError(f"auth.{_file(auth)}: more than {MAX_CANDIDATES} keys")
    return keys


def _blocks(content: bytes) -> Sequence[bytes]:
    """The PEM blocks of a file, without what stands before the first of them."""
    return [PEM + block for block in content.split(PEM)[1:]] or [b""]


def _public_key(block: bytes, algorithms: Sequence[str]) -> Key:
    try:
        key = fit(load_pem_public_key(block), algorithms)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("auth.public_key_file: not a public key in PEM format") from None
    if not key.algorithms:
        raise ConfigError("auth.public_key_file: the key does not fit auth.algorithms")
    return key


def _secret(name: str, secret: bytes, algorithms: Sequence[str]) -> Key:
    """Refuse what is too short for one of the algorithms (RFC 7518, section 3.2), or no secret."""
    shortest = max(int(algorithm[2:]) // 8 for algorithm in algorithms)
    if len(secret) < shortest:
        raise ConfigError(f"{name}: shorter than {shortest} bytes, which auth.algorithms asks for")
    try:
        jwt.get_algorithm_by_name(algorithms[0]).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ConfigError(f"{name}: a key in PEM or SSH format is not a secret") from None
    return Key(secret, algorithms)


def expand(algorithms: Sequence[str]) -> Sequence[str]:
    """Return `algorithms`; where EdDSA is among them, under both of its names."""
    return [*algorithms, *(ED25519 if set(ED25519) & set(algorithms) else ())]


def fit(material: object, algorithms: Sequence[str], named: object = None) -> Key:
    """Pair a public key with those of `algorithms` that it can verify (RFC 7518, section 3.1).

    Args:
        material: the key.
        algorithms: what is configured.
        named: the only algorithm that the key's owner wants it used for (RFC 7517, section 4.4).
    """
    fitting: tuple[str, ...] = ()
    if isinstance(material, rsa.RSAPublicKey) and material.key_size >= MIN_RSA_BITS:
        fitting = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    elif isinstance(material, ec.EllipticCurvePublicKey):
        fitting = (EC_ALGORITHMS.get(material.curve.name, ""),)
    elif isinstance(material, ed25519.Ed25519PublicKey):
        fitting = ED25519
    elif isinstance(material, ed448.Ed448PublicKey):
        fitting = ("EdDSA",)
    wanted = fitting if named is None else ED25519 if named in ED25519 else (named,)
    return Key(
        material, [name for name in expand(algorithms) if name in fitting and name in wanted]
    )
