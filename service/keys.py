"""The keys that verify tokens, and their fixed sources: a secret, or a public key file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service import config
from service.config import MIN_SECRET_BYTES
from service.errors import ConfigError

MIN_RSA_BITS = 2048  # RFC 7518, section 3.3
EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True)
class Key:
    """A key, and the algorithms it may verify: what is configured, and fits the key's type."""

    material: Any
    algorithms: Sequence[str]


class Keys(Protocol):
    """A source of keys."""

    async def find(self, kid: str | None) -> Key | None:
        """Return the key that a token names in its header; None where there is none.

        Raises:
            Unavailable: no keys are known yet.
        """

    @property
    def ready(self) -> bool:
        """Whether tokens can be verified."""


@dataclass(frozen=True)
class FixedKey:
    """One key for every token, whatever kid it names."""

    key: Key
    ready: bool = True

    async def find(self, kid: str | None) -> Key | None:  # noqa: ARG002 - the only key there is
        """Return the key."""
        return self.key


def load_key(auth: config.Auth) -> FixedKey:
    """Take the secret, or read it or the public key from its file.

    Raises:
        ConfigError: the file cannot be read, or holds no key that fits auth.algorithms.
    """
    if auth.public_key_file:
        pem = _read("auth.public_key_file", auth.public_key_file)
        try:
            key = fit(load_pem_public_key(pem), auth.algorithms)
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError("auth.public_key_file: not a public key in PEM format") from None
        if not key.algorithms:
            raise ConfigError("auth.public_key_file: the key does not fit auth.algorithms")
        return FixedKey(key)
    secret = auth.secret.encode()
    if auth.secret_file:
        secret = _read("auth.secret_file", auth.secret_file).strip()
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(f"auth.secret_file: shorter than {MIN_SECRET_BYTES} bytes")
    return FixedKey(Key(secret, auth.algorithms))


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None


def fit(material: object, algorithms: Sequence[str]) -> Key:
    """Pair a public key with those of `algorithms` that it can verify (RFC 7518, section 3.1)."""
    fitting: tuple[str, ...] = ()
    if isinstance(material, rsa.RSAPublicKey) and material.key_size >= MIN_RSA_BITS:
        fitting = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    elif isinstance(material, ec.EllipticCurvePublicKey):
        fitting = (EC_ALGORITHMS.get(material.curve.name, ""),)
    elif isinstance(material, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        fitting = ("EdDSA",)
    return Key(material, [name for name in algorithms if name in fitting])
