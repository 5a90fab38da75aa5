"""Configuration: config.toml, overridden by the environment, checked before anything runs."""

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from service.errors import ConfigError

PREFIX = "SYSTEMEVENT_"
# Kubernetes sets these for each Service, so for one named systemevent-server, too; no key of ours
# ends so, but for SYSTEMEVENT_SERVER_PORT and SYSTEMEVENT_ADMIN_PORT: there the value tells.
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
LINK = re.compile(
    r"\w+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|\w+_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)
MIN_SECRET_BYTES = 32  # of a secret for HS256 (RFC 7518, section 3.2)
STATEMENTS = 5  # that one connection may have to keep
NO_URL = re.compile(r"[^\x21-\x7e]")  # what no URL holds
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]+")  # RFC 9110, section 5.6.2, without *
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what is no text: NUL, lone surrogates

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
]  # fmt: skip


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """The public port."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    keepalive: Seconds = 75.0
    drain: Annotated[float, Meta(ge=0, le=300)] = 5.0
    max_header_size: Annotated[int, Meta(ge=1024, le=65_536)] = 8190


class Admin(Struct, frozen=True, forbid_unknown_fields=True):
    """The operator's port: /live, /ready and /metrics."""

    host: str = "127.0.0.1"
    port: Port = 8081


class Database(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the read state lives."""

    url: str = ""
    read_url: str = ""
    read_lag: Annotated[float, Meta(ge=2, le=3600)] = 10.0
    data_dir: str = ".data"
    pool_size: Annotated[int, Meta(ge=1, le=100)] = 4
    statement_timeout: Seconds = 3.0
    connect_timeout: Seconds = 2.0
    statement_cache_size: Annotated[int, Meta(ge=0, le=1000)] = 100


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """How a bearer token is verified."""

    algorithms: list[Algorithm] = field(default_factory=lambda: ["HS256"])
    secret: str = ""
    previous_secret: str = ""
    secret_file: str = ""
    public_key_file: str = ""
    jwks_url: str = ""
    jwks_allow_http: bool = False
    jwks_max_age: Annotated[float, Meta(ge=10, le=7 * 86_400)] = 3600.0
    user_claim: Annotated[str, Meta(min_length=1)] = "userId"
    audience: list[str] = []
    issuer: list[str] | str = []
    client_claim: str = ""
    clients: list[str] = []
    leeway: Annotated[float, Meta(ge=0, le=60)] = 0.0
    cache_size: Count = 10_000

    @property
    def issuers(self) -> list[str]:
        """The issuers; a file may name a single one without brackets."""
        return [self.issuer] if self.issuer and isinstance(self.issuer, str) else [*self.issuer]


class Cors(Struct, frozen=True, forbid_unknown_fields=True):
    """Which pages of other origins may call, and what they may send."""

    origins: list[str] = []
    headers: list[str] = []


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What one request may ask for, and how long it may take."""

    max_ids: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    max_scan: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 50_000
    max_count: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 2_000
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
    format: Literal["auto", "json", "text"] = "auto"


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


def anywhere(host: str) -> str | None:
    """The host, or None for every address of this machine, of IPv4 and IPv6."""
    return None if host in ("", "::") else host


def address(server: Server) -> str:
    """host:port, as URLs have it."""
    host = anywhere(server.host) or "::"
    return f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"


def load(path: str | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read a configuration as `read` does, and check it as `check` does."""
    return check(read(path, environ))


def load_database(path: str | None, environ: Mapping[str, str] = os.environ) -> Database:
    """Read a configuration for a command that needs the database alone, and check that part."""
    database = read(path, environ).database
    _check_database_url(database.url)
    return database


def read(path: str | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file at `path`, apply the environment, and return what they say.

    Each key is of its type and within its bounds; what they say together is for `check`.

    Args:
        path: of a TOML file; None means ./config.toml, which may be missing.
        environ: where SYSTEMEVENT_<SECTION>_<KEY> are looked up.

    Raises:
        ConfigError: naming the key that is unknown or ill-typed. Its text never holds a value.
    """
    values = _parse(path)
    for key in ("secret", "previous_secret"):
        if key in values.get("auth", {}):
            raise ConfigError(
                f"auth.{key}: a secret does not belong into a file that is committed; "
                f"set SYSTEMEVENT_AUTH_{key.upper()} or name a file in auth.secret_file"
            )
    for name, text in environ.items():
        if name.startswith(PREFIX) and not LINK.fullmatch(f"{name}={text}"):
            section, key, value = _from_environ(name, text)
            values.setdefault(section, {})[key] = value
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_name_key(str(error))) from None


def load_logging(path: str | None, environ: Mapping[str, str] = os.environ) -> Logging:
    """Read [logging] alone, so that faults of the rest are told in its form."""
    with contextlib.suppress(ConfigError, msgspec.ValidationError):
        values = _parse(path).get("logging", {})
        for name in environ:
            if name.startswith(f"{PREFIX}LOGGING_"):
                _, key, value = _from_environ(name, environ[name])
                values[key] = value
        return msgspec.convert(values, Logging)
    return Logging()


def _parse(path: str | None) -> dict[str, Any]:
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
    text = text.rstrip("\r\n")  # what comes out of a file often ends in one
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


def check(config: Config) -> Config:
    """Refuse what each key allows alone and all of them together do not; else return it.

    Raises:
        ConfigError: naming the key that is missing or contradictory. Its text never holds a value.
    """
    _check_auth(config.auth)
    for origin in config.cors.origins:
        scheme, _, host = origin.partition("://")
        if not _is_url(origin, {scheme}) or re.search(r"[/?#@*]", host):
            raise ConfigError("cors.origins: each is scheme://host[:port], without a path or a *")
    if not all(HEADER_NAME.fullmatch(name) for name in config.cors.headers):
        raise ConfigError("cors.headers: each is the name of a header, without a *")
    _check_database_url(config.database.url)
    if config.database.read_url:
        _check_database_url(config.database.read_url, "read_url")
    if 0 < config.database.statement_cache_size < STATEMENTS:
        raise ConfigError(f"database.statement_cache_size: 0, or {STATEMENTS} and more")
    if config.limits.body_deadline > config.limits.deadline:
        raise ConfigError("limits.body_deadline: longer than limits.deadline")
    return config


def _check_auth(auth: Auth) -> None:
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
    if not sources:
        wanted = "auth.secret" if hmac else "auth.jwks_url"
        others = "auth.secret_file" if hmac else "auth.public_key_file"
        raise ConfigError(f"{wanted}: missing; set SYSTEMEVENT_{_variable(wanted)}, or {others}")
    if auth.previous_secret and not auth.secret:
        raise ConfigError("auth.previous_secret: stands beside auth.secret, which is missing")
    if auth.jwks_url and not _is_url(auth.jwks_url, {"https", "http"}):
        raise ConfigError("auth.jwks_url: not an http or https URL")
    url = urlsplit(auth.jwks_url)
    local = auth.jwks_allow_http or LOOPBACK.fullmatch(url.hostname or "")
    if url.scheme == "http" and not local:
        raise ConfigError("auth.jwks_url: http to another host; use https, or auth.jwks_allow_http")
    if bool(auth.client_claim) != bool(auth.clients):
        missing, given = ("clients", "client_claim")[:: 1 if auth.client_claim else -1]
        raise ConfigError(f"auth.{missing}: missing, beside auth.{given}")


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


def _check_database_url(url: str, key: str = "url") -> None:
    """Refuse what is none; database/url.py reads what it says."""
    if not url:
        raise ConfigError("database.url: missing; set SYSTEMEVENT_DATABASE_URL")
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError(f"database.{key}: not a postgresql:// URL")
