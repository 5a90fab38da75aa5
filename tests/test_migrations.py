"""The schema: up and down, its snapshot, its comments, and who may do what to it.

The snapshot is tests/schema.sql; after a new migration COMMAND writes it anew.
"""

import contextlib
import difflib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from yoyo import get_backend, read_migrations

from service.errors import ConfigError
from service.migrations import TABLE, migrate, roll_back
from service.queries import load_queries, migration_names
from tests.cluster import BIN, Cluster
from tests.conftest import HERE, ROLE, SECRET, psql

MIGRATIONS = HERE.parent / "migrations"
SQL = sorted((HERE.parent / "sql").glob("*.sql"))
SNAPSHOT = HERE / "schema.sql"
COMMAND = "SNAPSHOT=write .venv/bin/python -m pytest tests/test_migrations.py"

# What yoyo makes for itself; the table with what is applied is in the snapshot, we read that one.
YOYO = ("*yoyo*", f"{TABLE}_*")

_numbers = itertools.count()


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """An empty database, dropped after the test."""
    name = f"empty_{next(_numbers)}"
    psql(cluster.url(), f"create database {name}")
    yield cluster.url(name)
    psql(cluster.url(), f"drop database {name} with (force)")


def dump(url: str, *without: str) -> str:
    """The schema as pg_dump writes it; without yoyo's tables, owners, remarks and settings."""
    excluded = [f"--exclude-table={pattern}" for pattern in (*YOYO, *without)]
    done = subprocess.run(
        [BIN / "pg_dump", "--schema-only", "--no-owner", *excluded, url],
        capture_output=True,
        text=True,
        check=True,
    )
    noise = re.compile(r"(?m)^(--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict ).*\n")
    return re.sub(r"\n{2,}", "\n\n", noise.sub("", done.stdout)).strip() + "\n"


def difference(expected: str, found: str) -> str:
    """Two schemas compared, line by line; empty if they are the same."""
    lines = (expected.splitlines(), found.splitlines(), "expected", "found")
    return "\n".join(difflib.unified_diff(*lines, lineterm=""))


def test_each_migration_goes_up_down_and_up_again(url: str) -> None:
    """Its rollback leaves the schema as it was, and it can be applied once more."""
    backend = get_backend(url.replace("postgresql:", "postgresql+psycopg:"), TABLE)
    with contextlib.closing(backend.connection):
        migrations = read_migrations(str(MIGRATIONS))
        assert {migration.id for migration in migrations} == migration_names()
        assert backend.to_apply(migrations)  # makes yoyo's own tables
        before = dump(url)
        for migration in backend.to_apply(migrations):
            backend.apply_one(migration)
            after = dump(url)
            assert after != before
            backend.rollback_one(migration)
            assert not difference(before, dump(url)), migration.id
            backend.apply_one(migration)
            assert not difference(after, dump(url)), migration.id
            before = after


def test_the_schema_is_the_snapshot(url: str) -> None:
    """What the migrations make is what tests/schema.sql shows, which a reviewer reads."""
    migrate(url)
    found = dump(url)
    if os.environ.get("SNAPSHOT") == "write":
        SNAPSHOT.write_text(found)
    if different := difference(SNAPSHOT.read_text(), found):
        pytest.fail(f"{SNAPSHOT}:\n{different}\n\nIf it is right: {COMMAND}", pytrace=False)


def test_migrating_again_changes_nothing(url: str) -> None:
    """The second time there is nothing to apply."""
    assert set(migrate(url)) == migration_names()
    assert migrate(url) == []


def test_several_instances_may_migrate_at_once(url: str) -> None:
    """All succeed, and each migration is applied by one of them."""
    environ = {**os.environ, "SYSTEMEVENT_DATABASE_URL": url, "SYSTEMEVENT_AUTH_SECRET": SECRET}
    with contextlib.ExitStack() as stack:
        instances = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "service", "migrate"],
                    cwd=HERE.parent,
                    env=environ,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        said = [instance.communicate()[0] for instance in instances]
    assert [instance.returncode for instance in instances] == [0] * 3
    for name in migration_names():
        assert sum(name in text for text in said) == 1
    assert not difference(SNAPSHOT.read_text(), dump(url))


def test_a_lock_that_a_crash_left_behind_does_not_stop_it(url: str) -> None:
    """A lock of yoyo's is a row; whoever wrote it is gone, since we hold a lock of our own."""
    migrate(url)
    roll_back(url)
    table = "select oid::regclass from pg_class where relname like '%lock' and relkind = 'r'"
    lock = psql(url, table).strip()
    psql(url, f"insert into {lock} (locked, ctime, pid) values (1, now() - interval '1 day', 1)")  # noqa: S608
    assert set(migrate(url)) == migration_names()


def test_a_platform_that_uses_yoyo_too_is_left_alone(url: str, tmp_path: Path) -> None:
    """Its bookkeeping is not ours, nor is its lock, which it may hold at the moment."""
    (tmp_path / "0001_theirs.sql").write_text("create table theirs (id int)")
    theirs = get_backend(url.replace("postgresql:", "postgresql+psycopg:"))
    with contextlib.closing(theirs.connection), theirs.lock():
        theirs.apply_migrations(read_migrations(str(tmp_path)))
        everything = ("table _yoyo_migration", "table _yoyo_log", "table yoyo_lock")
        before = psql(url, *everything)
        assert set(migrate(url)) == migration_names()
        assert psql(url, *everything) == before


def test_a_migration_that_fails_is_told(url: str) -> None:
    """What cannot be applied is an error, and the ones before it stay."""
    psql(url, "create table system_event_read (mine int)")
    with pytest.raises(ConfigError, match="system_event_read"):
        migrate(url)
    assert psql(url, "select mine from system_event_read") == ""


# What a platform may have in place of our stand-ins, by name of the relation.
PLATFORM = {
    "users": "select 'ann' as id, 'org' as organization_id, 'Ann' as name, '@' as email, "
    "0::smallint as org_role",
    "system_event_log": "select 'org' as organization_id, 1::bigint as id, now() as \"timestamp\", "
    "0::smallint as context, 0::smallint as event, 'x' as context_id, 'ann' as user_id, "
    "null as workspace_id, null as json_data",
    "workspace_user": "select 'w' as workspace_id, 'ann' as user_id",
}


@pytest.mark.parametrize(
    ("kind", "schema", "theirs"),
    [
        ("table", "public", PLATFORM.keys()),
        ("view", "platform", PLATFORM.keys()),
        ("materialized view", "public", PLATFORM.keys()),
        ("table", "platform", {"users"}),
        ("view", "public", {"system_event_log"}),
    ],
)
def test_the_platforms_relations_stay_the_platforms(
    url: str, kind: str, schema: str, theirs: set[str]
) -> None:
    """Found in any schema of the search path, they are used, and outlive a rollback."""
    name = url.rpartition("/")[2]
    psql(
        url,
        f"create schema if not exists {schema}",
        f"alter database {name} set search_path = public, platform",
        *(f"create {kind} {schema}.{relation} as {PLATFORM[relation]}" for relation in theirs),
    )
    before = dump(url)
    assert set(migrate(url)) == migration_names()
    made = set(psql(url, STAND_INS).split())
    assert made == PLATFORM.keys() - theirs
    psql(url, "insert into system_event_read values ('org', 'ann', 1)", "table system_event_reader")
    roll_back(url)
    assert not difference(before, dump(url, TABLE))
    for relation in theirs:
        assert psql(url, f"select count(*) from {schema}.{relation}") == "1\n"  # noqa: S608


STAND_INS = """
    select relname from pg_class
    where relkind in ('r', 'v', 'm') and relname in ('users', 'system_event_log', 'workspace_user')
      and obj_description(oid, 'pg_class') like 'stand-in: %'
"""
UNCOMMENTED = """
    select c.relname::text || coalesce('.' || a.attname, '')
    from pg_class c
    left join pg_attribute a
      on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and c.relkind = 'r'
    where c.relnamespace = 'public'::regnamespace
      and c.relname !~ 'yoyo|^system_event_read_migration'  -- yoyo made them
      and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)
      and (obj_description(c.oid, 'pg_class') is null or a.attnum is not null)
"""


@pytest.fixture(scope="module")
def migrated(cluster: Cluster) -> Iterator[str]:
    """A migrated database that no test of this module changes; its address as the owner."""
    psql(cluster.url(), "create database migrated template template_migrated")
    yield cluster.url("migrated")
    psql(cluster.url(), "drop database migrated with (force)")


@pytest.fixture
def as_role(cluster: Cluster, migrated: str) -> str:
    """Its address as the service's role."""
    return cluster.url("migrated", ROLE)


def test_everything_has_a_comment(migrated: str) -> None:
    """Each table, each of its columns, each view and each index: psql shows what it is for."""
    assert psql(migrated, UNCOMMENTED).split() == []


PRIVILEGES = f"""
    select c.relname || ' ' || p.privilege
    from pg_class c
    cross join unnest(
      array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN']
    ) as p (privilege)
    where c.relkind in ('r', 'v', 'm', 'f', 'p') and c.relnamespace = 'public'::regnamespace
      and has_table_privilege('{ROLE}', c.oid, p.privilege)
"""  # noqa: S608
OWNED = f"select relname from pg_class where relowner = '{ROLE}'::regrole"  # noqa: S608


def test_the_role_may_write_read_state_only(migrated: str) -> None:
    """Insert and delete there, nothing elsewhere; and it owns nothing."""
    found = set(psql(migrated, PRIVILEGES).splitlines())
    assert found == {"system_event_read INSERT", "system_event_read DELETE"}
    assert psql(migrated, OWNED) == ""


@pytest.mark.parametrize(
    "command",
    [
        "update users set organization_id = 'globex' where id = 'alice'",
        "delete from system_event_log",
        "insert into workspace_user values ('w2', 'alice')",
        "update system_event_read set read_at = now()",
        "truncate system_event_read",
        "delete from system_event_read_migration",
        "create table mine (id int)",
        "create schema mine",
    ],
)
def test_the_role_is_refused(as_role: str, command: str) -> None:
    """Permission denied, whatever statement somebody might smuggle in."""
    with psycopg.connect(as_role) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute(command)


@pytest.mark.parametrize("file", SQL, ids=lambda file: file.stem)
def test_each_statement_prepares_under_the_role(as_role: str, file: Path) -> None:
    """Names, types and permissions fit the migrated schema."""
    text = file.read_text()
    psql(as_role, f"prepare statement as {text}", f"explain (generic_plan) {text}")


@pytest.mark.parametrize("file", SQL, ids=lambda file: file.stem)
def test_no_statement_writes_elsewhere(migrated: str, file: Path) -> None:
    """The plan of a statement changes system_event_read or nothing, and locks no rows."""
    plan = psql(migrated, f"explain (generic_plan, verbose) {file.read_text()}")
    changed = set(re.findall(r"\b(?:Insert|Update|Delete|Merge) on (\S+)", plan))
    assert changed == ({"public.system_event_read"} if file.stem.startswith("mark_") else set())
    assert "LockRows" not in plan


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    """A copy of sql/ to spoil."""
    for file in SQL:
        (tmp_path / file.name).write_text(file.read_text())
    return tmp_path


def test_the_loader_reads_each_file(sql: Path) -> None:
    """The text of each, by its name."""
    assert load_queries(sql) == load_queries()
    assert load_queries(sql).mark_read == (sql / "mark_read.sql").read_text()


def test_a_file_without_a_user_stops_the_start(sql: Path) -> None:
    """And is named."""
    (sql / "forgotten.sql").write_text("select 1")
    with pytest.raises(LookupError, match="forgotten"):
        load_queries(sql)


@pytest.mark.parametrize("name", [file.stem for file in SQL])
def test_a_user_without_a_file_stops_the_start(sql: Path, name: str) -> None:
    """And is named."""
    (sql / f"{name}.sql").unlink()
    with pytest.raises(LookupError, match=name):
        load_queries(sql)
