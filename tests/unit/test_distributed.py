"""No statement holds what Citus 13.2 was seen to refuse, or to do in the wrong place.

Citus does not run here, so the texts are held to what is known; deploy/citus.sql says how the
tables are distributed. Each rule has texts that break it.
"""

import re

import pytest

from service.database.connections import COMMON_SETTINGS, READ_SETTINGS, WRITE_SETTINGS
from service.database.queries import load_queries
from tests.conftest import ROOT

TEXTS = {name: re.sub(r"--.*", "", text) for name, text in vars(load_queries()).items()}
# Each parameter list says so of the statements for one caller.
ONE_CALLER = [
    name for name, text in vars(load_queries()).items() if re.search(r"\$2 \w+ +the call", text)
]
GIVEN = r"{}\.organization_id = coalesce\(\$2::text, \(select c\.organization_id from caller c\)\)"
VOLATILE = r"\b(random|nextval|clock_timestamp|timeofday|gen_random_uuid|uuid_generate_v\w+)\("
WRITTEN = r"insert into system_event_read \([^)]*\)\s*select (\S+),.*? from (.*)"


def forced_plan(text: str) -> bool:
    """An insert ... select with a generic plan: "could not create distributed plan"."""
    return "plan_cache_mode" in text


def locked_rows(text: str) -> bool:
    """'could not run distributed query with FOR UPDATE/SHARE commands', on several shards."""
    return bool(re.search(r"\bfor (no key )?(update|share|key share)\b", text))


def cut_in_lateral(text: str) -> bool:
    """A bound where a reference table is looked at from a lateral.

    "Offset clause is currently unsupported when a lateral subquery references a column from a
    reference table"; so is a limit.
    """
    references = re.findall(r"(?:from|join) (?:users|workspace_user) (\w+)", text)
    return any(
        re.search(r"\b(offset|limit)\b", body) and re.search(rf"\b{name}\.", body)
        for body in _laterals(text)
        for name in references
        if not re.search(rf"(from|join) \w+ {name}\b", body)
    )


def volatile_write(text: str) -> bool:
    """A delete with one is refused; an insert goes through the coordinator."""
    return bool(re.search("insert into|delete from", text) and re.search(VOLATILE, text))


def foreign_organization(text: str) -> bool:
    """An organization that is not the event's own column: rows go through the coordinator."""
    for column, rest in re.findall(WRITTEN, text, re.DOTALL):
        alias = column.partition(".")[0]
        if not column.endswith(".organization_id") or not _of_the_log(text, rest, alias):
            return True
    return False


def _of_the_log(text: str, rest: str, alias: str) -> bool:
    """Whether the alias stands for the log, or for what was read from it and kept the column."""
    found = re.search(rf"\b(\w+) {alias}\b(?! *\.)", rest)
    if not found:
        return False
    if found[1] == "system_event_log":
        return True
    body = re.search(rf"\b{found[1]} as (?:materialized )?\((.*)", text, re.DOTALL)
    columns = body and re.search(
        r"\bselect\s+(\*|\w+\.\*|(\w+)\.organization_id\b).*?\bfrom ", body[1], re.DOTALL
    )
    if not body or not columns:
        return False
    inner = body[1][columns.end() - len("from ") :]
    name = columns[2] or inner.split()[2]
    return _of_the_log(text, inner, name)


def _laterals(text: str) -> list[str]:
    """What is in the parentheses of each lateral subquery."""
    bodies = []
    for start in (match.end() for match in re.finditer(r"lateral \(", text)):
        depth, end = 1, start
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        bodies.append(text[start : end - 1])
    return bodies


RULES = (forced_plan, locked_rows, cut_in_lateral, volatile_write, foreign_organization)
BAD = [
    (forced_plan, "set plan_cache_mode = force_generic_plan"),
    (locked_rows, "select r.event_id from system_event_read r for update skip locked"),
    (
        cut_in_lateral,
        (
            "select e.id from users u join lateral (select l.id from system_event_log l"
            " where l.organization_id = u.organization_id offset 0) e on true"
        ),
    ),
    (volatile_write, "delete from system_event_read r where random() < 0"),
    (
        volatile_write,
        (
            "insert into system_event_read (organization_id, user_id, event_id, read_at)"
            " select e.organization_id, 'a', e.id, clock_timestamp() from system_event_log e"
        ),
    ),
    (
        foreign_organization,
        (
            "insert into system_event_read (organization_id, user_id, event_id)"
            " select u.organization_id, u.id, e.id from users u join system_event_log e on true"
        ),
    ),
    (
        foreign_organization,
        (
            "insert into system_event_read (organization_id, user_id, event_id)"
            " select $2::text, $1::text, e.id from system_event_log e"
        ),
    ),
]


@pytest.mark.parametrize("rule", RULES)
def test_no_statement_breaks_it(rule: object) -> None:
    """Nor do the settings of a session."""
    assert callable(rule)
    settings = " ".join([*COMMON_SETTINGS, *READ_SETTINGS, *WRITE_SETTINGS])
    texts = {**TEXTS, "settings": settings}
    assert [name for name, text in texts.items() if rule(text)] == []


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_what_breaks_it_is_found(rule: object, text: str) -> None:
    """Each of these was tried on Citus."""
    assert callable(rule)
    assert rule(text)


@pytest.mark.parametrize("name", ONE_CALLER)
def test_one_caller_asks_one_shard(name: str) -> None:
    """Where $2 is given, each distributed table is cut by it, in the form that Citus can fold.

    Otherwise it refuses the subselect of a limit: "not supported in multi-shard queries".
    """
    aliases = re.findall(r"(?:from|join) system_event_(?:log|read) (\w+)\s", TEXTS[name])
    assert aliases
    assert [alias for alias in aliases if not re.search(GIVEN.format(alias), TEXTS[name])] == []


def test_our_table_has_no_identity() -> None:
    """Its numbers would be drawn on the coordinator: an insert would go through it, row by row."""
    table = (ROOT / "migrations/0002_system_event_read.sql").read_text()
    assert not re.search(r"identity|serial|nextval", re.sub("--.*", "", table))
