"""Brings the schema up to date: the files in migrations/, applied by yoyo."""

import contextlib
from collections.abc import Iterator

import psycopg
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from service import resource
from service.errors import ConfigError
from service.queries import load_queries

TABLE = "system_event_read_migration"


class _Backend(PostgresqlPsycopgBackend):
    """yoyo's, but connecting as libpq does: several hosts, sockets, TLS, passfile.

    And with tables of our own, beside those of a platform that uses yoyo itself.
    """

    lock_table = f"{TABLE}_lock"
    log_table = f"{TABLE}_log"
    version_table = f"{TABLE}_version"

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection:
        return psycopg.connect(dburi.args["conninfo"], autocommit=True)


def migrate(url: str) -> list[str]:
    """Apply what is pending, and return the ids of it. Several may try at once; one does.

    Raises:
        ConfigError: the database cannot be reached or refuses.
    """
    with _backend(url) as backend:
        pending = backend.to_apply(_migrations())
        backend.apply_migrations(pending)
        # yoyo may skip one that fails and go on
        if left := [migration.id for migration in backend.to_apply(_migrations())]:
            raise ConfigError(f"migrations not applied: {', '.join(left)}")
        return [migration.id for migration in pending]


def roll_back(url: str) -> None:
    """Undo all migrations. Read state is lost; the platform's relations stay."""
    with _backend(url) as backend:
        backend.rollback_migrations(backend.to_rollback(_migrations()))


def _migrations() -> object:
    return read_migrations(str(resource("migrations")))


@contextlib.contextmanager
def _backend(url: str) -> Iterator[PostgresqlPsycopgBackend]:
    """A backend that nobody else has: one instance migrates at a time."""
    try:
        with psycopg.connect(url, autocommit=True) as holder:
            holder.execute(load_queries().lock_migrations)
            uri = DatabaseURI("postgresql", None, None, None, None, "", {"conninfo": url})
            backend = _Backend(uri, TABLE)
            backend.init_database()
            backend.break_lock()  # yoyo's own is a row; whoever left it is gone
            yield backend
            backend.connection.close()
    except psycopg.Error as error:
        if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
            raise ConfigError("database.url: not a valid URL") from None  # the text would quote it
        raise ConfigError(f"database.url: {' '.join(str(error).split())}") from error
