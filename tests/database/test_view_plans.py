"""What the views for psql read: it grows with what is asked about, not with its square."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import new_database, psql
from tests.support.cluster import Cluster

USERS, EVENTS = 100, 20_000  # in the organization that is asked about
# Half of the events nobody has read, the others their actor, and one or two of their workspace.
LOAD = f"""
insert into users
select o || '-' || n, o, 'name', 'mail', case when n <= 2 then 255 else 0 end
from unnest('{{big,small,other}}'::text[]) o, generate_series(1, {USERS}) n;
insert into workspace_user
select distinct 'w' || (n + i) % 20, o || '-' || n
from unnest('{{big,small,other}}'::text[]) o
cross join generate_series(1, {USERS}) n
cross join generate_series(0, 4) i;
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
select
  o.name, n, now() - (o.events - n) * interval '360 days' / o.events, n % 14, n % 3, 'thing',
  o.name || '-' || n % {USERS} + 1, case when n % 10 < 7 then 'w' || n % 20 end
from (values ('big', {EVENTS}), ('small', 200), ('other', 4000)) o (name, events)
cross join generate_series(1, o.events) n;
insert into system_event_read (organization_id, user_id, event_id, read_at)
select distinct on (e.organization_id, reader, e.id)
  e.organization_id, reader, e.id, e."timestamp" + random() * interval '2 days'
from system_event_log e
cross join lateral (
  values
    (e.user_id), (e.organization_id || '-' || e.id % 20 + 1),
    (e.organization_id || '-' || e.id % 17 + 21)
) as x (reader)
where e.id % 2 = 0;
"""
READS = EVENTS * 3 // 2  # and fewer, where a reader came twice


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def url(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A database with that load, without statistics and with."""
    tables = ("users", "workspace_user", "system_event_log", "system_event_read")
    quiet = [f"alter table {table} set (autovacuum_enabled = off)" for table in tables]
    with new_database(cluster, f"views_{request.param}") as url:
        psql(url, *quiet, LOAD)
        if request.param == "analyzed":
            psql(url, "vacuum analyze")
        yield url


def rows(node: dict[str, Any]) -> float:
    """How many rows the nodes of a plan made or threw away."""
    thrown = sum(value for key, value in node.items() if key.startswith("Rows Removed"))
    below = sum(map(rows, node.get("Plans", ())))
    return float(node["Actual Loops"] * (node["Actual Rows"] + thrown) + below)


ALL = 5 * (EVENTS + READS)  # once or so
ONE = 10 * USERS  # found by the keys of the organization's users


@pytest.mark.parametrize(
    ("view", "where", "limit"),
    [
        ("reader", "organization_id = 'big' and event_id = 10000", ONE),
        ("unread", "user_id = 'big-1'", ALL),
        ("unread", "user_id = 'big-50'", ALL),
        ("unread_count", "organization_id = 'big'", 2 * ALL),
        ("unnoticed", "organization_id = 'big' order by timestamp desc limit 20", ALL),
        ("read_rate", "organization_id = 'big' and event_id = 10000", 3 * ONE),
        ("read_rate", "organization_id = 'big' order by timestamp desc limit 5", 5 * 3 * ONE),
        ("read_rate_by_day", "organization_id = 'big' and day > current_date - 7", ALL),
    ],
)
def test_what_a_question_reads(url: str, view: str, where: str, limit: int) -> None:
    """Never as many rows as there are events times users."""
    asked = f"select * from system_event_{view} where {where}"
    (plan,) = json.loads(psql(url, f"explain (analyze, timing off, format json) {asked}"))
    assert rows(plan["Plan"]) < limit, json.dumps(plan, indent=1)
