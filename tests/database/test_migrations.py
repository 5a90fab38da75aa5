"""The schema: up and down, its snapshot, its comments, and who may do what to it.

The snapshot is tests/support/schema.sql; after a new migration COMMAND writes it anew.
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
import yaml
from psycopg.errors import InsufficientPrivilege
from yoyo import get_backend, read_migrations

from service.database.migrations import PLATFORM as FIRST
from service.database.migrations import TABLE, VIEWS, migrate, undo
from service.database.queries import load_queries, migration_names
from service.errors import ConfigError
from tests.conftest import ROLE, ROOT, SECRET, new_database, psql
from tests.support.cluster import BIN, Cluster

MIGRATIONS = ROOT / "migrations"
SQL = sorted((ROOT / "sql").glob("*.sql"))
VERSION = int(re.findall(r"\d+", subprocess.check_output([BIN / "psql", "-V"], text=True))[0])
SNAPSHOT_VERSION = 18
SNAPSHOT = ROOT / "tests/support/schema.sql"
COMMAND = "SNAPSHOT=write .venv/bin/python -m pytest -n 0 tests/database/test_migrations.py"

# What yoyo makes for itself; the table with what is applied is in the snapshot, we read that one.
YOYO = ("*yoyo*", f"{TABLE}_*")

ALL = migration_names() | {VIEWS}

_numbers = itertools.count()


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """An empty database, dropped after the test."""
    with new_database(cluster, f"empty_{next(_numbers)}", "") as url:
        yield url


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


@pytest.mark.session
def test_each_migration_goes_up_down_and_up_again(url: str) -> None:
    """Its rollback leaves the schema as it was, and it can be applied once more."""
    backend = get_backend(url.replace("postgresql:", "postgresql+psycopg:"), TABLE)
    with contextlib.closing(backend.connection):
        migrations = read_migrations(str(MIGRATIONS))
        assert {migration.id for migration in migrations} == ALL
        assert backend.to_apply(migrations)  # makes yoyo's own tables
        before = dump(url)
        for migration in backend.to_apply(migrations):
            backend.apply_one(migration)
            after = dump(url)
            assert (after != before) != (migration.id == "0003_views")  # views.sql has what it had
            backend.rollback_one(migration)
            assert not difference(before, dump(url)), migration.id
            backend.apply_one(migration)
            assert not difference(after, dump(url)), migration.id
            before = after


@pytest.mark.skipif(VERSION != SNAPSHOT_VERSION, reason="other versions dump in another form")
def test_the_schema_is_the_snapshot(url: str) -> None:
    """What the migrations make is what tests/support/schema.sql shows, which a reviewer reads."""
    migrate(url)
    found = dump(url)
    if os.environ.get("SNAPSHOT") == "write":
        SNAPSHOT.write_text(found)
    if different := difference(SNAPSHOT.read_text(), found):
        pytest.fail(f"{SNAPSHOT}:\n{different}\n\nIf it is right: {COMMAND}", pytrace=False)


def test_migrating_again_changes_nothing(url: str) -> None:
    """The second time there is nothing to apply."""
    assert set(migrate(url)) == ALL
    assert migrate(url) == []


@pytest.mark.parametrize(
    "change",
    [
        "drop view system_event_reader",
        "drop view system_event_visible cascade",
        "drop view system_event_reader; create view system_event_reader as select 1 as other",
        "create or replace view system_event_unread as select * from system_event_unread limit 1",
        "alter view system_event_unread set (security_invoker = false)",
        "comment on view system_event_reader is 'mine'",
    ],
)
def test_views_are_made_anew(url: str, change: str) -> None:
    """Those that are gone, or are not as this version makes them; whatever changed them."""
    migrate(url)
    made = dump(url)
    psql(url, change)
    assert dump(url) != made
    assert migrate(url) == [VIEWS]
    assert not difference(made, dump(url))
    assert migrate(url) == []


def test_a_platforms_view_is_replaced(url: str) -> None:
    """Dropped with all that depends on it and made anew; then `migrate` makes ours anew."""
    view = f"create view users as {PLATFORM['users']}"
    psql(url, view)
    migrate(url)
    made = dump(url)
    psql(url, "drop view users cascade", view)
    assert migrate(url) == [VIEWS]
    assert not difference(made, dump(url))


def test_views_upon_ours_are_kept(url: str) -> None:
    """Where ours are as they should be; otherwise what stands in the way is told, and all stays."""
    migrate(url)
    psql(url, "create view theirs as table system_event_reader")
    assert migrate(url) == []
    psql(url, "drop view system_event_read_rate")
    before = dump(url)
    with pytest.raises(ConfigError, match="view theirs depends on view system_event_reader"):
        migrate(url)
    assert not difference(before, dump(url))


@pytest.mark.parametrize("first", sorted(ALL))
def test_undoing_and_migrating_again(url: str, first: str) -> None:
    """From the newest to any one of them; and then all is as before."""
    migrate(url)
    made = dump(url)
    assert undo(url, first) == sorted((name for name in ALL if name >= first), reverse=True)
    assert dump(url) != made
    assert set(migrate(url)) == {name for name in ALL if name >= first}
    assert not difference(made, dump(url))


def test_several_instances_may_migrate_at_once(url: str) -> None:
    """All succeed, and each migration is applied by one of them."""
    others = {name: value for name, value in os.environ.items() if name[:12] != "SYSTEMEVENT_"}
    environ = {**others, "SYSTEMEVENT_DATABASE_URL": url, "SYSTEMEVENT_AUTH_SECRET": SECRET}
    with contextlib.ExitStack() as stack:
        instances = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "service", "migrate"],
                    cwd=ROOT,
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
    if VERSION == SNAPSHOT_VERSION:
        assert not difference(SNAPSHOT.read_text(), dump(url))


def test_a_platform_that_uses_yoyo_too_is_left_alone(url: str, tmp_path: Path) -> None:
    """Its bookkeeping is not ours, nor is its lock, which it may hold at the moment."""
    (tmp_path / "0001_theirs.sql").write_text("create table theirs (id int)")
    theirs = get_backend(url.replace("postgresql:", "postgresql+psycopg:"))
    with contextlib.closing(theirs.connection), theirs.lock():
        theirs.apply_migrations(read_migrations(str(tmp_path)))
        everything = ("table _yoyo_migration", "table _yoyo_log", "table yoyo_lock")
        before = psql(url, *everything)
        assert set(migrate(url)) == ALL
        assert psql(url, *everything) == before


def test_a_migration_that_fails_leaves_nothing(url: str) -> None:
    """What cannot be applied is an error, and the ones before it are not applied either."""
    psql(url, "create table system_event_read (mine int)")
    before = psql(url, EVERYTHING)
    with pytest.raises(ConfigError, match="system_event_read"):
        migrate(url)
    assert psql(url, EVERYTHING) == before


EVERYTHING = """
    select oid::regclass, relkind from pg_class
    where relnamespace::regnamespace::text !~ '^(pg_|information_schema)' order by oid
"""


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
    assert set(migrate(url)) == ALL
    made = set(psql(url, STAND_INS).split())
    assert made == PLATFORM.keys() - theirs
    psql(url, "insert into system_event_read values ('org', 'ann', 1)", "table system_event_reader")
    undo(url, FIRST)
    assert not difference(before, dump(url, TABLE))
    for relation in theirs:
        assert psql(url, f"select count(*) from {schema}.{relation}") == "1\n"


# Wrong in every way: another type, a column that is not there, a relation that is.
WRONG = """
    create domain person as uuid;
    create table users (
      id person, organization_id bigint, name varchar(9), mail text, org_role text
    );
    create view system_event_log as select
      'org'::char(36) as organization_id, 1::numeric as id, current_date as "timestamp",
      'repo' as context, 'ann'::name as user_id;
"""
FAULTS = """
database.url: system_event_log.context is text, must be smallint;
system_event_log.context_id is missing, must be text;
system_event_log.event is missing, must be smallint;
system_event_log.id is numeric, must be bigint;
system_event_log.json_data is missing, must be text;
system_event_log.organization_id is character(36), must be text;
system_event_log.timestamp is date, must be timestamp with time zone;
system_event_log.user_id is name, must be text;
system_event_log.workspace_id is missing, must be text;
users.email is missing, must be text;
users.id is person, must be text;
users.org_role is text, must be smallint;
users.organization_id is bigint, must be text:
see deploy/platform_views.sql
"""


def test_what_does_not_fit_is_told_at_once(url: str) -> None:
    """Every column that the statements cannot use, before anything is made."""
    psql(url, WRONG)
    before = psql(url, EVERYTHING)
    with pytest.raises(ConfigError) as told:
        migrate(url)
    assert str(told.value).split() == FAULTS.split()
    assert psql(url, EVERYTHING) == before


def test_a_relation_that_is_gone_is_told(url: str) -> None:
    """What was there and was dropped since is not replaced by a stand-in."""
    psql(url, f"create view users as {PLATFORM['users']}")
    migrate(url)
    psql(url, "drop view users cascade", "drop table workspace_user cascade")
    with pytest.raises(ConfigError) as told:
        migrate(url)
    missing = "users is missing; workspace_user is missing"
    assert str(told.value) == f"database.url: {missing}: see deploy/platform_views.sql"


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
    with new_database(cluster, "migrated") as url:
        yield url


@pytest.fixture
def as_role(cluster: Cluster, migrated: str) -> str:
    """Its address as the service's role."""
    return cluster.url("migrated", ROLE)


def test_everything_has_a_comment(migrated: str) -> None:
    """Each table, each of its columns, each view and each index: psql shows what it is for."""
    assert psql(migrated, UNCOMMENTED).split() == []


MAINTAIN = ", 'MAINTAIN'" if VERSION >= 17 else ""
PRIVILEGES = f"""
    select c.relname || ' ' || p.privilege
    from pg_class c
    cross join unnest(
      array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'{MAINTAIN}]
    ) as p (privilege)
    where c.relkind in ('r', 'v', 'm', 'f', 'p') and c.relnamespace = 'public'::regnamespace
      and has_table_privilege('{ROLE}', c.oid, p.privilege)
"""
OWNED = f"select relname from pg_class where relowner = '{ROLE}'::regrole"


def test_the_role_may_write_read_state_only(migrated: str) -> None:
    """Insert and delete there, nothing elsewhere; and it owns nothing."""
    found = set(psql(migrated, PRIVILEGES).splitlines())
    assert found == {"system_event_read INSERT", "system_event_read DELETE"}
    assert psql(migrated, OWNED) == ""


def test_compose_makes_the_role(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that is in deploy/compose.yaml, as often as it runs; it may serve then."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    program, *arguments, _ = compose["services"]["grants"]["command"]
    files = dict(mount.split(":")[:2] for mount in compose["services"]["grants"]["volumes"])
    text = " ".join(arguments).replace("systemevent_read", "composed")
    for here, there in files.items():
        text = text.replace(f"={there}", f"={ROOT / 'deploy' / here}")
    migrate(url)
    for password in ("it's", 'an"other'):
        monkeypatch.setenv("ROLE_PASSWORD", password)
        subprocess.run([BIN / program, "-q", *text.split(), url], check=True)
    found = psql(url, PRIVILEGES.replace(ROLE, "composed"))
    assert set(found.splitlines()) == {"system_event_read INSERT", "system_event_read DELETE"}
    psql(url, "drop owned by composed", "drop role composed")


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


def generic_plan(url: str, file: Path) -> str:
    """The plan of a statement for whatever arguments it may get; nothing is run."""
    text = file.read_text()
    nulls = ", ".join(["null"] * len(set(re.findall(r"\$\d+", re.sub("--.*", "", text)))))
    return psql(
        url,
        "set plan_cache_mode = force_generic_plan",
        f"prepare statement as {text}",
        f"explain (verbose) execute statement{f'({nulls})' if nulls else ''}",
    )


@pytest.mark.session
@pytest.mark.parametrize("file", SQL, ids=lambda file: file.stem)
def test_each_statement_prepares_under_the_role(as_role: str, file: Path) -> None:
    """Names, types and permissions fit the migrated schema."""
    assert generic_plan(as_role, file)


@pytest.mark.session
@pytest.mark.parametrize("file", SQL, ids=lambda file: file.stem)
def test_no_statement_writes_elsewhere(migrated: str, file: Path) -> None:
    """The plan of a statement changes system_event_read or nothing, and locks no rows."""
    plan = generic_plan(migrated, file)
    changed = set(re.findall(r"\b(?:Insert|Update|Delete|Merge) on (\S+)", plan))
    writes = file.stem.startswith("mark_") or file.stem == "prune_delete"
    assert changed == ({"public.system_event_read"} if writes else set())
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
