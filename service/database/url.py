"""Where `database.url` leads, once for both drivers: psycopg (migrate) and asyncpg (serve).

libpq says what it means. What asyncpg cannot do as well is refused for both, so that a database is
never migrated that cannot be served, or another one. `database.read_url` is read in the same way.
"""

import contextlib
import logging
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from service.database import libpq, tls
from service.errors import ConfigError

log = logging.getLogger(__name__)

APPLICATION = "systemevent-read"  # in pg_stat_activity, where the URL names none
Options = Mapping[str, str]  # libpq's, by their names

# Each key of libpq's is in one of these three; one that is in none is refused where it is set.
HONOURED = frozenset({
    "service", "user", "password", "passfile", "dbname", "host", "hostaddr", "port", "options",
    "application_name", "fallback_application_name", "connect_timeout", "keepalives",
    "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "sslmode",
    "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "channel_binding",
})  # fmt: skip
DROPPED: Mapping[str, str] = {
    "client_encoding": "both drivers speak UTF-8, whatever the terminal does",
    "sslcompression": "libpq ignores it too",
    "krbsrvname": "of Kerberos, which neither driver is installed with",
    "gsslib": "of Kerberos, which neither driver is installed with",
    "max_protocol_version": "asyncpg speaks 3.0, which every maximum includes",
}
# Only these values pass: asyncpg can do no others, and most of these ask for nothing.
ONLY: Mapping[str, frozenset[str]] = {
    "load_balance_hosts": frozenset({"disable", "random"}),
    "sslcertmode": frozenset({"disable", "allow"}),
    "target_session_attrs": frozenset({"any", "primary", "read-write"}),  # marks are writes
    "gssencmode": frozenset({"disable", "prefer"}),
    "gssdelegation": frozenset({"0"}),
    "min_protocol_version": frozenset({"3.0"}),
    "replication": frozenset({"0", "false", "off", "no"}),
    "sslsni": frozenset({"1"}),
    **dict.fromkeys(
        (
            "requirepeer", "require_auth", "sslcrldir", "sslkeylogfile", "scram_client_key",
            "scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret",
            "oauth_scope",
        ),
        frozenset(),
    ),
}  # fmt: skip
# The same for a replica, which takes no writes
OF_REPLICA: Mapping[str, frozenset[str]] = {
    **ONLY,
    "target_session_attrs": frozenset({"any", "standby", "prefer-standby", "read-only"}),
}
NUMBERS = (
    "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
    "tcp_user_timeout",
)  # fmt: skip
LAST_PORT = 65535

_read: dict[str, Options] = {}


def read(url: str, *, replica: bool = False) -> Options:
    """Ask libpq what a URL means, and remember it for this process and those that it forks.

    It is database.url, or that of a replica, database.read_url.

    Raises:
        ConfigError: it is no URL, or says what one of the drivers cannot do; the text names the
            key, and no value.
    """
    key = "database.read_url" if replica else "database.url"
    try:
        options = libpq.read(url)
        options = _secure({key: value for key, value in options.items() if key not in DROPPED})
        _check(options, OF_REPLICA if replica else ONLY)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    if not options.get("password"):
        _look_at_passfile(options.get("passfile", ""), key)
    _read[url] = options
    return options


def known(url: str, *, replica: bool = False) -> Options:
    """What was read; a worker that is replaced does not look into files that may have changed."""
    return _read.get(url) or read(url, replica=replica)


def hosts(options: Options) -> str:
    """All hosts with their ports, for the log."""
    pairs = zip(options["host"].split(","), options["port"].split(","), strict=True)
    return ",".join(f"{host}:{port}" for host, port in pairs)


def for_libpq(options: Options) -> dict[str, str]:
    """The same for psycopg, which connects by libpq."""
    given = {key: value for key, value in options.items() if value and key != "service"}
    given["client_encoding"] = "UTF8"
    given.setdefault("fallback_application_name", APPLICATION)
    # The OpenSSL in psycopg's wheel does not know where the system keeps its certificates.
    if given.get("sslrootcert") == "system" and (file := ssl.get_default_verify_paths().cafile):
        given["sslrootcert"] = file
    return given


def _secure(options: dict[str, str]) -> dict[str, str]:
    """Put something else in the place of channel binding, which asyncpg cannot do.

    It says that nobody stands between client and server; so does a certificate that is verified.
    """
    if options["channel_binding"] == "require":
        if options["sslmode"] == "disable":
            raise ValueError("channel_binding: require contradicts sslmode")
        if not tls.verifies(options):
            options["sslmode"] = "verify-full"
            options.setdefault("sslrootcert", "system")
    return options


def _check(options: Options, only: Mapping[str, frozenset[str]]) -> None:
    for key, value in options.items():
        if value and key not in HONOURED and value not in only.get(key, ()):
            raise ValueError(f"{key}: not with this value; the driver of serve cannot do it")
    for key in NUMBERS:
        if not options.get(key, "0").strip().lstrip("-").isdecimal():
            raise ValueError(f"{key}: not a number")
    for port in options["port"].split(","):
        if not (port.isdecimal() and 0 < int(port) <= LAST_PORT):
            raise ValueError("port: not a port")
    if any(host.startswith("@") for host in options["host"].split(",")):
        raise ValueError("host: the driver of serve knows no abstract sockets")
    tls.check(options)


def _look_at_passfile(path: str, key: str) -> None:
    """Tell that a passfile is ignored, as libpq does."""
    with contextlib.suppress(OSError):  # there is none
        file = Path(path)
        if file.is_file() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("%s: passfile: ignored, since others may read it; chmod 600", key)
