"""Demo mode, where database.url is empty: a PostgreSQL of our own with demo data, and a secret."""

import contextlib
import fcntl
import ipaddress
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from service import config as configuration
from service.config import Config
from service.demo.postgres import Postgres
from service.errors import ConfigError

log = logging.getLogger(__name__)

DEMO_DATA = Path(__file__).parent / "data.sql"
LATER = "postgresql:///"  # for a URL that is not known before the server runs


def check(config: Config) -> Config:
    """Refuse what demo mode will not serve, before anything is made or started.

    Returns:
        The configuration with stand-ins for what demo mode fills in.

    Raises:
        ConfigError: naming the key.
    """
    _refuse_production(config)
    return _fill_in(config, LATER, lambda: "?" * configuration.MIN_SECRET_BYTES)


def with_secret(config: Config) -> Config:
    """Fill in the secret that demo mode keeps in database.data_dir, where none is configured.

    Raises:
        ConfigError: it cannot be kept, or the configuration is refused.
    """
    return _fill_in(config, LATER, lambda: _kept_secret(Path(config.database.data_dir)))


@contextlib.contextmanager
def database(config: Config) -> Iterator[Callable[[Config], Config]]:
    """Run a PostgreSQL in database.data_dir, migrated and with demo data, while the context lasts.

    Yields what fills in a configuration: with the server's URL, and the secret in that folder. It
    raises ConfigError for a configuration that demo mode refuses.

    Raises:
        ConfigError: it cannot be started; the text says what to do.
    """
    import psycopg

    from service.database.migrations import migrate

    folder = Path(config.database.data_dir).absolute()
    owner = os.getpid()
    with _locked(folder):
        server = Postgres(folder / "postgres")
        if not server.data.exists():
            log.info("making a PostgreSQL with demo data, once: %s", config.database.data_dir)
        try:
            server.initialize()
            server.start()
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            url = server.url()
            migrate(url)
            with psycopg.connect(url) as connection:
                connection.execute(DEMO_DATA.read_bytes())

            def complete(read: Config) -> Config:
                _refuse_production(read)
                return _fill_in(read, url, lambda: _kept_secret(folder))

            yield complete
        finally:
            if os.getpid() == owner:  # a worker that ends leaves through here as well
                server.stop()


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine and nothing that others can reach."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def _refuse_production(config: Config) -> None:
    """Refuse to hand tokens to anybody where what is configured is meant for more than trying.

    There the URL of the database was lost, or forgotten.
    """
    if config.database.url:
        raise ConfigError("database.url: to or from demo mode only by a restart")
    keys = (
        *("secret", "previous_secret", "secret_file", "public_key_file", "jwks_url"),
        *("issuer", "audience", "clients"),
    )
    found = {f"auth.{key}": getattr(config.auth, key) for key in keys}
    found["database.read_url"] = config.database.read_url
    found["server.host"] = not is_loopback(config.server.host)
    if key := next((key for key, value in found.items() if value), None):
        raise ConfigError(
            f"database.url: missing; set SYSTEMEVENT_DATABASE_URL. Without it this is demo mode, "
            f"which gives tokens to anybody, and refuses {key} as it is configured"
        )


def _fill_in(config: Config, url: str, secret: Callable[[], str]) -> Config:
    """Fill in what is demo mode's to decide, and check all of it."""
    auth = config.auth
    if not all(name.startswith("HS") for name in auth.algorithms):
        raise ConfigError("auth.algorithms: demo mode signs tokens, and needs HS for that")
    if not any((auth.secret, auth.secret_file, auth.public_key_file, auth.jwks_url)):
        auth = msgspec.structs.replace(auth, secret=secret())
    database = msgspec.structs.replace(config.database, url=url)
    return configuration.check(msgspec.structs.replace(config, auth=auth, database=database))


def _kept_secret(folder: Path) -> str:
    """The secret in a file of the folder, drawn at the first start."""
    file = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.suppress(FileExistsError),
            open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as new,
        ):
            new.write(secrets.token_hex(configuration.MIN_SECRET_BYTES))
        return file.read_text()
    except OSError as error:
        raise _unusable(folder, error) from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second service out of the same folder: the first to stop would stop both."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise _unusable(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"database.data_dir: {folder} is in use by another process") from None
        yield


def _unusable(folder: Path, error: OSError) -> ConfigError:
    """What the operator is told of a folder where we may not do what we must."""
    return ConfigError(f"database.data_dir: {folder}: {error.strerror}")
