"""Brings the schema up to date: the files in migrations/, applied by yoyo."""

import contextlib
import hashlib
from collections.abc import Iterator

import psycopg
from psycopg.conninfo import make_conninfo
from yoyo import internalmigrations, read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, MigrationList

from service import resource
from service.database import platform
from service.database.queries import load_queries
from service.database.url import for_libpq, read
from service.errors import ConfigError

TABLE = "system_event_read_migration"
PLATFORM = "0001_platform"  # makes the platform's relations where there are none
VIEWS = "views"  # the last; made anew where the database has them in another form


class _Backend(PostgresqlPsycopgBackend):
    """yoyo's, but connecting as libpq does: several hosts, sockets, TLS, passfile.

    With tables of our own, beside those of a platform that uses yoyo itself. On one connection, in
    one transaction, of which yoyo's are savepoints: all of it is done, or nothing. Its lock, a row
    that a crash leaves behind, is not used.
    """

    log_table = f"{TABLE}_log"
    version_table = f"{TABLE}_version"

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection:
        # Nothing prepared: a pooler may lend the next migration a session that has it already.
        return psycopg.connect(dburi.args["conninfo"], autocommit=True, prepare_threshold=None)

    def copy(self) -> contextlib.AbstractContextManager["_Backend"]:
        return contextlib.nullcontext(self)

    def list_tables(self, **_: object) -> list[str]:
        return [name for (name,) in self.connection.execute(load_queries().our_tables)]

    def ensure_internal_schema_updated(self) -> None:
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)

    def migrations(self) -> MigrationList:
        """All that there are, in order; the views by a hash of what they are, not of a name."""
        found: MigrationList = read_migrations(str(resource("migrations")))
        found[-1].hash = self._hash_of_views()
        return found

    def mark_one(self, migration: Migration, log: bool = True) -> None:  # noqa: FBT001, FBT002 - yoyo's
        if migration.id == VIEWS:
            migration.hash = self._hash_of_views()
        super().mark_one(migration, log)

    def undo(self, first: str) -> list[str]:
        """Take back what is applied, from the newest to the `first`; the ids."""
        self.ensure_internal_schema_updated()
        applied = dict(self.connection.execute(load_queries().applied_migrations).fetchall())
        migrations = [
            it for it in self.migrations() if it.id >= first and it.id in {*applied, VIEWS}
        ]
        for migration in reversed(migrations):
            migration.hash = applied.get(migration.id, migration.hash)
            self.rollback_one(migration)
        return [migration.id for migration in reversed(migrations)]

    def _hash_of_views(self) -> str:
        made = self.connection.execute(load_queries().view_definitions).fetchone()
        text = (resource("migrations") / f"{VIEWS}.sql").read_text("utf-8")
        return hashlib.sha256(f"{text}{made}".encode()).hexdigest()


def migrate(url: str) -> list[str]:
    """Apply what is pending, all or nothing, and return the ids of it.

    Several may try at once; one does.

    Raises:
        ConfigError: the database cannot be reached or refuses, or the platform's relations are not
            what the statements need.
    """
    with _transaction(url) as backend:
        found = backend.connection.execute(load_queries().platform_faults).fetchall()
        _refuse(platform.faults(found, may_be_missing=True))
        pending = backend.to_apply(backend.migrations())
        names = [migration.id for migration in pending]
        if PLATFORM not in names:
            _refuse(platform.faults(found))
        if VIEWS in names:
            backend.undo(VIEWS)
        backend.apply_migrations(pending)
        # yoyo may skip one that fails and go on
        if left := [migration.id for migration in backend.to_apply(backend.migrations())]:
            raise ConfigError(f"migrations not applied: {', '.join(left)}")
        return names


def undo(url: str, first: str) -> list[str]:
    """Take back a migration and those after it, with what their tables hold; return the ids.

    The platform's relations stay, but for stand-ins.

    Raises:
        ConfigError: the database cannot be reached or refuses.
    """
    with _transaction(url) as backend:
        return backend.undo(first)


def _refuse(fault: str | None) -> None:
    if fault:
        raise ConfigError(f"database.url: {fault}")


@contextlib.contextmanager
def _transaction(url: str) -> Iterator[_Backend]:
    """A backend in a transaction that nobody else has: one instance migrates at a time."""
    role = None
    conninfo = make_conninfo("", **for_libpq(read(url)))
    try:
        uri = DatabaseURI("postgresql", None, None, None, None, "", {"conninfo": conninfo})
        with _Backend(uri, TABLE) as backend:
            role = backend.connection.info.user
            with backend.transaction():
                backend.connection.execute(load_queries().lock_migrations)
                yield backend
    except psycopg.errors.InsufficientPrivilege as error:
        refusal = f"role {role}: {error.diag.message_primary}"
        raise ConfigError(
            f"database.url: {refusal}; migrate as the owner of the schema and of our tables"
        ) from error
    except psycopg.Error as error:
        raise ConfigError(f"database.url: {' '.join(str(error).split())}") from error
