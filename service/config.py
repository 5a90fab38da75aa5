"""Configuration: config.toml, overridden by the environment, checked before anything runs."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec
from msgspec import Meta, Struct, field

from service.errors import ConfigError

PREFIX = "SYSTEMEVENT_"
NOT_OURS = "SYSTEMEVENT_READ_"  # Kubernetes sets these for a Service named systemevent-read
MIN_SECRET_BYTES = 32
STATEMENTS = 4  # that one connection may have to keep
NO_URL = re.compile(r"[^\x21-\x7e]")  # what no URL holds
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what is no text: NUL, lone surrogates

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """The public port."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    keepalive: Seconds = 75.0


class Admin(Struct, frozen=True, forbid_unknown_fields=True):
    """The operator's port: /live and /ready."""

    host: str = "127.0.0.1"
    port: Port = 8081


class Database(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the read state lives."""

    url: str = ""
    data_dir: str = ".data"
    pool_size: Annotated[int, Meta(ge=1, le=100)] = 4
    statement_timeout: Seconds = 3.0
    connect_timeout: Seconds = 2.0
    statement_cache_size: Annotated[int, Meta(ge=0, le=1000)] = 100


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """How a bearer token is verified."""

    algorithms: list[Algorithm] = field(default_factory=lambda: ["HS256"])
    secret: str = ""
    secret_file: str = ""
    public_key_file: str = ""
    jwks_url: str = ""
    user_claim: Annotated[str, Meta(min_length=1)] = "userId"
    audience: list[str] = []
    issuer: str = ""
    leeway: Annotated[float, Meta(ge=0, le=60)] = 0.0
    cache_size: Count = 10_000


class Cors(Struct, frozen=True, forbid_unknown_fields=True):
    """Which pages of other origins may call."""

    origins: list[str] = []


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What one request may ask for, and how long it may take."""

    max_ids: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    deadline: Seconds = 10.0
    body_deadline: Seconds = 5.0


class Commit(Struct, frozen=True, forbid_unknown_fields=True):
    """Group commit: what one statement may carry, and what may wait for it."""

    in_flight: Annotated[int, Meta(ge=1, le=64)] = 1
    max_requests: Count = 256
    max_ids: Count = 10_000
    max_queue: Count = 10_000


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    """What goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All of it; each field is a section of config.toml."""

    server: Server = Server()
    admin: Admin = Admin()
    database: Database = Database()
    auth: Auth = Auth()
    cors: Cors = Cors()
    limits: Limits = Limits()
    commit: Commit = Commit()
    logging: Logging = Logging()


def address(server: Server) -> str:
    """host:port, as URLs have it."""
    return (
        f"[{server.host}]:{server.port}" if ":" in server.host else f"{server.host}:{server.port}"
    )


def load(path: str | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file at `path`, apply the environment, check, and return what holds.

    Args:
        path: of a TOML file; None means ./config.toml, which may be missing.
        environ: where SYSTEMEVENT_<SECTION>_<KEY> are looked up.

    Raises:
        ConfigError: naming the key that is unknown, missing, ill-typed or contradictory. Its text
            never holds a value.
    """
    values = _read(path)
    if "secret" in values.get("auth", {}):
        raise ConfigError(
            "auth.secret: a secret does not belong into a file that is committed; "
            "set SYSTEMEVENT_AUTH_SECRET or name a file in auth.secret_file"
        )
    for name, text in environ.items():
        if name.startswith(PREFIX) and not name.startswith(NOT_OURS):
            section, key, value = _from_environ(name, text)
            values.setdefault(section, {})[key] = value
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_name_key(str(error))) from None
    return _check(config)


def _read(path: str | None) -> dict[str, Any]:
    file = Path(path or "config.toml")
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid TOML: " + str(error)
        raise ConfigError(f"{file}: {reason}") from None
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise ConfigError(f"{section}: expected a section, [{section}]")
    return values


def _from_environ(name: str, text: str) -> tuple[str, str, object]:
    """Section, key and typed value of one environment variable."""
    section, _, key = name.removeprefix(PREFIX).lower().partition("_")
    struct = Config.__annotations__.get(section)
    annotation = struct and struct.__annotations__.get(key)
    if annotation is None:
        raise ConfigError(f"{name}: no such key, {section}.{key}")
    value: object = text
    if UNSTORABLE.search(text):
        raise ConfigError(f"{section}.{key}: not text (from {name})")
    if str(annotation).startswith("list"):
        value = [item.strip() for item in text.split(",") if item.strip()]
    try:
        return section, key, msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{section}.{key}: {_without_value(str(error))} (from {name})") from None


def _name_key(message: str) -> str:
    """Turn msgspec's 'Expected `int`, got `str` - at `$.server.port`' into 'server.port: ...'."""
    text, _, where = message.partition(" - at ")
    where = where.strip("`").removeprefix("$").lstrip(".")
    if text.startswith("Object contains unknown field"):
        where, text = ".".join(filter(None, (where, text.split("`")[1]))), "no such key"
    return f"{where or 'config'}: {_without_value(text)}"


def _without_value(text: str) -> str:
    """Drop the value that msgspec repeats for an enumeration, and the position."""
    text = text.partition(" - at ")[0]
    return "not one of the values allowed" if text.startswith("Invalid enum value") else text


def _check(config: Config) -> Config:
    """Refuse what each key allows alone and all of them together do not."""
    _check_auth(config.auth, embedded=not config.database.url)
    for origin in config.cors.origins:
        scheme, _, host = origin.partition("://")
        if not _is_url(origin, {scheme}) or re.search(r"[/?#@*]", host):
            raise ConfigError("cors.origins: each is scheme://host[:port], without a path or a *")
    if config.database.url:
        _check_database_url(config.database.url)
    if 0 < config.database.statement_cache_size < STATEMENTS:
        raise ConfigError(f"database.statement_cache_size: 0, or {STATEMENTS} and more")
    if config.limits.body_deadline > config.limits.deadline:
        raise ConfigError("limits.body_deadline: longer than limits.deadline")
    return config


def _check_auth(auth: Auth, *, embedded: bool) -> None:
    hmac = {name for name in auth.algorithms if name.startswith("HS")}
    keys = ("secret", "secret_file", "public_key_file", "jwks_url")
    sources = [key for key in keys if getattr(auth, key)]
    if not auth.algorithms:
        raise ConfigError("auth.algorithms: at least one is needed")
    if hmac and len(hmac) < len(auth.algorithms):
        raise ConfigError("auth.algorithms: HS (a secret) and the others (public keys) do not mix")
    if len(sources) > 1:
        raise ConfigError(f"auth.{sources[1]}: contradicts auth.{sources[0]}; set one of them")
    if sources and bool(hmac) != sources[0].startswith("secret"):
        raise ConfigError(f"auth.{sources[0]}: does not fit auth.algorithms")
    if not sources and not (embedded and hmac):
        wanted = "auth.secret" if hmac else "auth.jwks_url"
        others = "auth.secret_file" if hmac else "auth.public_key_file"
        raise ConfigError(f"{wanted}: missing; set SYSTEMEVENT_{_variable(wanted)}, or {others}")
    if embedded and not hmac:
        raise ConfigError("auth.algorithms: embedded mode signs tokens, and needs HS for that")
    if auth.secret and len(auth.secret.encode()) < MIN_SECRET_BYTES:
        raise ConfigError(f"auth.secret: shorter than {MIN_SECRET_BYTES} bytes")
    if auth.jwks_url and not _is_url(auth.jwks_url, {"https", "http"}):
        raise ConfigError("auth.jwks_url: not an http or https URL")


def _variable(key: str) -> str:
    return key.replace(".", "_").upper()


def _is_url(url: str, schemes: set[str]) -> bool:
    """Whether a URL has a scheme of these, a host, and, if any, a port that is one."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        return False
    return parts.scheme in schemes - {""} and bool(parts.hostname) and not NO_URL.search(url)


def split_hosts(url: str) -> list[str]:
    """Split a database URL of several hosts into one each, in their order."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=user + at + host)) for host in hosts.split(",")]


def _check_database_url(url: str) -> None:
    """Refuse what can never connect; what it is is not told, since it may hold a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError("database.url: not a postgresql:// URL")
    try:
        for one in split_hosts(url):
            parts = urlsplit(one)
            parts.port  # noqa: B018 - raises where it is none
            query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigError("database.url: not a valid URL") from None
    for key in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        if query.get(key, "system") != "system" and not os.access(query[key], os.R_OK):
            raise ConfigError(f"database.url: {key}: cannot read that file")
