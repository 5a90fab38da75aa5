"""A platform with names and types of its own, served through views; and the views for psql."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from service.database.connections import READ_SETTINGS, WRITE_SETTINGS
from service.database.migrations import migrate, undo
from service.database.queries import load_queries
from tests.conftest import (
    ROLE,
    ROOT,
    Sandbox,
    Service,
    Start,
    bearer,
    cut,
    new_database,
    new_role,
    psql,
)
from tests.support.cluster import POOLED, Cluster

DEPLOY = ROOT / "deploy"


def uid(kind: int, number: int = 0) -> str:
    """A uuid for a test to recognize."""
    return str(UUID(int=kind << 64 | number))


COMPANY, OTHER_COMPANY = uid(1, 1), uid(1, 2)
OWNER, MEMBER, LONER, STRANGER = uid(2, 1), uid(2, 2), uid(2, 3), uid(2, 4)
WORKSPACE = uid(3)

# The tables that deploy/platform_views.sql expects, and enough rows for an index to be worth it.
PLATFORM = f"""
create table users (
  uuid uuid primary key, company uuid, full_name text not null, mail text not null, level text
);
create table audit (
  serial bigint not null, company uuid not null, happened_at timestamptz not null,
  kind text not null, action text not null, subject text not null, actor uuid not null,
  workspace uuid, details jsonb, primary key (company, serial)
);
create table member (workspace uuid, account uuid, primary key (workspace, account));
insert into users values
  ('{OWNER}', '{COMPANY}', 'Olga Owner', 'olga@example.org', 'owner'),
  ('{MEMBER}', '{COMPANY}', 'Mia Member', 'mia@example.org', 'member'),
  ('{LONER}', null, 'Leo Loner', 'leo@example.org', 'member'),
  ('{STRANGER}', '{OTHER_COMPANY}', 'Sam Stranger', 'sam@example.org', 'admin');
insert into users
select md5(n::text)::uuid, '{OTHER_COMPANY}', 'name', 'mail', null from generate_series(1, 2000) n;
insert into member values ('{WORKSPACE}', '{MEMBER}');
insert into member
select md5('workspace ' || n)::uuid, md5(n::text)::uuid from generate_series(1, 2000) n;
insert into audit values
  (1, '{COMPANY}', now() - interval '3 hours', 'repository', 'add', 'repo', '{OWNER}', null,
   '{{"size": 1}}'),
  (2, '{COMPANY}', now() - interval '2 hours', 'person', 'change', 'user', '{MEMBER}', null, null),
  (3, '{COMPANY}', now() - interval '1 hours', 'project', 'remove', 'workspace', '{OWNER}',
   '{WORKSPACE}', null),
  (4, '{OTHER_COMPANY}', now(), 'storage', 'add', 'bucket', '{STRANGER}', '{WORKSPACE}', null);
insert into audit
select
  n, '{OTHER_COMPANY}', now() - n * interval '1 hour', 'storage', 'add', 'bucket', '{STRANGER}',
  null, null
from generate_series(5, 5000) n;
"""


@dataclass
class Platform:
    """A service on such a platform's database."""

    url: str  # as the owner
    client: "TestClient[Any, Any]"

    async def send(self, user: str, body: object, method: str = "POST") -> int:
        """Mark or, with DELETE, unmark; the status."""
        async with self.client.request(
            method, "/systemevent/read", json=body, headers=bearer(user)
        ) as answer:
            return answer.status

    async def list(self, user: str, **filters: str) -> list[dict[str, Any]]:
        """The events that a user sees, newest first."""
        async with self.client.post("/systemevent", json=filters, headers=bearer(user)) as answer:
            assert answer.status == 200
            events: list[dict[str, Any]] = (await answer.json())["events"]
            return events


@pytest.fixture(scope="module")
async def platform(cluster: Cluster) -> AsyncIterator[Platform]:
    """The steps in deploy/platform_views.sql, by an owner who may make no roles."""
    name = cluster.name("platform")  # of the database and of its owner
    with new_role(cluster, name), new_database(cluster, "platform", "", f"owner {name}"):
        owner, role = cluster.url("platform", name), cluster.url("platform", ROLE)
        psql(owner, PLATFORM)
        psql(owner, f"@{DEPLOY}/platform_views.sql")
        url = cluster.url("platform", name, options="-csearch_path%3Dsystemevent")
        psql(role, f"alter role {ROLE} in database {name} set search_path = systemevent")
        if POOLED:  # it takes no options
            psql(owner, f"alter role {name} in database {name} set search_path = systemevent")
            cut(cluster, name)
            url = owner
        migrate(url)
        psql(url, f"@{DEPLOY}/grants.sql", role=ROLE)
        psql(cluster.url("platform"), "vacuum analyze")
        async with TestClient(Service(role, {})) as client:
            yield Platform(url, client)


def test_the_platforms_own_schema_is_left_alone(platform: Platform) -> None:
    """All that is made is in the schema of the views; but for the indexes on their expressions."""
    made = "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"
    theirs = {"users", "audit", "member"}
    indexes = {"users_id_text_idx", "audit_id_idx", "audit_time_idx", "member_id_text_idx"}
    assert set(psql(platform.url, made).split()) == theirs | {f"{n}_pkey" for n in theirs} | indexes


async def test_the_service_is_ready_on_views(platform: Platform) -> None:
    """What it asks the database at its start works on views."""
    service = platform.client.server
    assert isinstance(service, Service)
    async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
        assert answer.status == 200
    assert service.given_up == []


async def test_users_with_uuids_mark_list_and_unmark(platform: Platform) -> None:
    """The three calls, by users whose ids are uuids."""
    assert await platform.send(MEMBER, {"ids": [2, 3, 4]}) == 200
    marked = "select organization_id, user_id, event_id from system_event_read order by event_id"
    assert psql(platform.url, marked).split() == [
        f"{COMPANY}|{MEMBER}|{event_id}" for event_id in (2, 3)
    ]
    assert [(event["id"], event["showUnread"]) for event in await platform.list(MEMBER)] == [
        (3, False),
        (2, False),
    ]
    assert await platform.send(MEMBER, {"id": 3}, "DELETE") == 200
    assert [(event["id"], event["showUnread"]) for event in await platform.list(MEMBER)] == [
        (3, True),
        (2, False),
    ]
    assert [event["id"] for event in await platform.list(OWNER)] == [3, 2, 1]


async def test_an_event_of_such_a_platform_is_shown_as_any_other(platform: Platform) -> None:
    """Texts where the platform has uuids, words where it has numbers, and its JSON as text."""
    event = (await platform.list(OWNER))[-1]
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "id": 1,
        "contextId": "repo",
        "context": "repo",
        "event": "created",
        "orgId": COMPANY,
        "userId": OWNER,
        "userName": "Olga Owner",
        "userEmail": "olga@example.org",
        "workspaceId": None,
        "jsonData": '{"size": 1}',
        "showUnread": True,
    }


@pytest.mark.parametrize(
    ("user", "status"), [(LONER, 403), (uid(9), 401), ("no uuid at all", 401), ("' or 1=1", 401)]
)
async def test_refusals_on_views(platform: Platform, user: str, status: int) -> None:
    """No organization, no such user; and an id that is no uuid is a user who does not exist."""
    assert await platform.send(user, {"id": 1}) == status


@pytest.mark.session
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", ["mark_read", "list_events", "page_events", "place", "mark_all"])
def test_statements_use_the_indexes_on_expressions(
    platform: Platform, name: str, mode: str
) -> None:
    """Users and events are looked up by just the expressions that the views show."""
    settings, types, arguments, used = PLANS[name]
    plan = psql(
        platform.url,
        *(f"set {key} = {value}" for key, value in settings.items()),
        f"set plan_cache_mode = {mode}",
        f"prepare tried ({types}) as {getattr(load_queries(), name)}",
        f"explain (format json) execute tried ({arguments})",
    )
    assert set(indexes(json.loads(plan)[0]["Plan"])) - {"system_event_read_pkey"} == used


LIST = "text, text, timestamptz, timestamptz, text, smallint, smallint, text, text, bool"
PLANS: dict[str, tuple[Mapping[str, str], str, str, set[str]]] = {
    "mark_read": (
        WRITE_SETTINGS,
        "text[], text[], text",
        f"array['{MEMBER}'], array['{MEMBER}'], '2'",
        {"users_id_text_idx", "audit_id_idx"},
    ),
    "list_events": (
        READ_SETTINGS,
        f"{LIST}, bigint, bigint, bigint",
        f"'{MEMBER}'{', null' * 8}, true, 0, 20, 50000",
        {"users_id_text_idx", "audit_time_idx", "member_id_text_idx"},
    ),
    "page_events": (
        READ_SETTINGS,
        f"{LIST}, interval, bigint, bigint, bigint",
        f"'{MEMBER}'{', null' * 8}, true, '20000 days', 7, 21, 5000",
        {"users_id_text_idx", "audit_time_idx", "member_id_text_idx"},
    ),
    "place": (
        WRITE_SETTINGS,
        "text, text, bigint",
        f"'{MEMBER}', null, 2",
        {"users_id_text_idx", "audit_id_idx"},
    ),
    "mark_all": (
        WRITE_SETTINGS,
        LIST.replace("bool", "interval, bigint, text, bigint, bigint"),
        f"'{MEMBER}'{', null' * 8}, '20000 days', 7, null, 2000, 20000",
        {"users_id_text_idx", "audit_time_idx", "member_id_text_idx"},
    ),
}


def indexes(node: dict[str, Any]) -> list[str]:
    """Names of the indexes that a plan uses; and "none" for each table that is read without."""
    below = itertools.chain.from_iterable(map(indexes, node.get("Plans", ())))
    used = {"Seq Scan": "none"}.get(node["Node Type"]) or node.get("Index Name")
    return [*below, *([used] if used else [])]


# A platform whose columns may be null and are of every other type that does, and whose times have
# no zone; its database is in Berlin.
SPARSE = """
create domain place as varchar(40);
create table users (
  id varchar(40), organization_id place, name varchar(9), email varchar, org_role bigint,
  primary key (id)
);
create table workspace_user (user_id varchar(40), workspace_id place);
create table system_event_log (
  organization_id varchar(40), id integer, "timestamp" timestamp, context integer, event integer,
  context_id varchar, user_id varchar, workspace_id place, json_data jsonb,
  primary key (organization_id, id)
);
insert into users values ('owner', 'o', null, null, 255), ('member', 'o', null, null, null);
insert into system_event_log values
  ('o', 1, now() at time zone 'UTC' - interval '30 minutes', 1, 1, 'young', 'owner', null, null),
  ('o', 2, '2026-01-01 12:00', null, null, null, 'owner', null, null),
  ('o', 3, '2026-07-01 12:00', -1, 99, null, 'member', null, null),
  ('o', 4, null, 1, 1, 'no time', 'owner', null, null);
"""


@pytest.fixture(scope="module")
async def sparse(cluster: Cluster) -> AsyncIterator[Platform]:
    """A service on such a database."""
    with new_database(cluster, "sparse", "") as url:
        zone = f"alter database {cluster.name('sparse')} set timezone = 'Europe/Berlin'"
        psql(url, SPARSE, zone)
        migrate(url)
        psql(url, f"@{DEPLOY}/grants.sql", role=ROLE)
        async with TestClient(Service(cluster.url("sparse", ROLE), {})) as client:
            yield Platform(url, client)


async def test_a_time_without_zone_is_utc(sparse: Platform) -> None:
    """In the window, and in the answer, wherever the server says that it is."""
    (event,) = await sparse.list("owner")
    assert event["id"] == 1
    since = datetime.now(UTC) - datetime.fromisoformat(event["timestamp"])
    assert timedelta(minutes=20) < since < timedelta(minutes=50)
    window = {"from_timestamp": "2026-01-01T12:00Z", "to_timestamp": "2026-01-01T12:00Z"}
    (event,) = await sparse.list("owner", **window)
    assert (event["id"], event["timestamp"]) == (2, "2026-01-01T12:00:00.000Z")


@pytest.mark.parametrize(
    ("event_id", "month", "expected"),
    [
        (2, "01", {"context": "", "event": "", "contextId": "", "userId": "owner"}),
        (3, "07", {"context": "-1", "event": "99", "contextId": "", "userId": "member"}),
    ],
)
async def test_null_is_an_empty_text(
    sparse: Platform, event_id: int, month: str, expected: dict[str, str]
) -> None:
    """Where the answer promises a text; and a number without a word is its digits."""
    window = {f"{end}_timestamp": f"2026-{month}-01T12:00Z" for end in ("from", "to")}
    (event,) = await sparse.list("owner", **window)
    assert event["id"] == event_id
    assert {name: event[name] for name in expected} == expected
    assert (event["userName"], event["userEmail"]) == ("", "")
    assert (event["workspaceId"], event["jsonData"]) == (None, None)


async def test_marks_with_every_type_that_does(sparse: Platform) -> None:
    """Types that are converted without a word are as good as those that are asked for."""
    assert await sparse.send("owner", {"ids": [1, 2]}) == 200
    assert psql(sparse.url, "select count(*) from system_event_read") == "2\n"
    assert await sparse.send("owner", {"ids": [1, 2]}, "DELETE") == 200
    assert psql(sparse.url, "select count(*) from system_event_read") == "0\n"


async def test_pages_and_mark_all_take_such_times(sparse: Platform) -> None:
    """A place is found again, and what has no time is nowhere."""
    everything: dict[str, Any] = {"from_timestamp": "2000-01-01T00:00Z", "cursor": None, "take": 1}
    ids = []
    while True:
        headers = bearer("owner")
        async with sparse.client.post("/systemevent", json=everything, headers=headers) as answer:
            page = await answer.json()
        ids += [event["id"] for event in page["events"]]
        everything["cursor"] = page["nextCursor"]
        if everything["cursor"] is None:
            break
    assert ids == [1, 3, 2]
    for up_to in (4, 3):
        body = everything | {"upTo": up_to}
        path = "/systemevent/read/all"
        async with sparse.client.post(path, json=body, headers=bearer("owner")) as answer:
            assert answer.status == 200
        read = psql(sparse.url, "select event_id from system_event_read order by 1").split()
        assert read == ([] if up_to == 4 else ["2", "3"])
    psql(sparse.url, "delete from system_event_read")


async def test_a_user_without_a_role_is_no_administrator(sparse: Platform) -> None:
    """Null is not 254; what has no time is not listed."""
    everything = {"from_timestamp": "2000-01-01T00:00Z"}
    assert [event["id"] for event in await sparse.list("member", **everything)] == [3]
    assert [event["id"] for event in await sparse.list("owner", **everything)] == [1, 3, 2]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_cannot_hold_all_text_is_refused(
    cluster: Cluster, encoding: str
) -> None:
    """The start ends with the reason; /ready says it as well."""
    name = f"narrow_{encoding.lower()}"
    options = f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
    with new_database(cluster, name, "", options):
        service = Service(cluster.url(name, ROLE), {})
        async with TestClient(service), asyncio.timeout(30):
            while not service.given_up:
                async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
                    assert answer.status == 503
                    assert encoding in await answer.text()
        assert f"the database keeps text as {encoding}" in str(service.given_up[0])


@pytest.mark.parametrize(
    "change",
    [
        "alter table users alter column name type varchar(99)",
        "alter table system_event_log alter column context type integer",
        "alter table workspace_user alter column user_id type varchar(99)",
    ],
)
async def test_the_platform_changes_a_columns_type(
    start: Start, database: Sandbox, change: str
) -> None:
    """Our views are in its way; the service does without them, and `migrate` brings them back."""
    client = await start()

    async def listed() -> list[Any]:
        async with client.post("/systemevent", json={}, headers=bearer()) as answer:
            assert answer.status == 200
            return [event["id"] for event in (await answer.json())["events"]]

    events = [await listed() for _ in range(7)][-1]  # so that it has a plan for any arguments
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="used by a view"):
        await database.owner.execute(change)
    undo(database.owner_url, "views")
    await database.owner.execute(change)
    assert await listed() == events
    for method in ("POST", "DELETE"):
        body = {"id": events[0]}
        async with client.request(
            method, "/systemevent/read", json=body, headers=bearer()
        ) as answer:
            assert answer.status == 200
    service = client.server
    assert isinstance(service, Service)
    async with aiohttp.request("GET", f"{service.admin}/ready") as answer:
        assert (answer.status, await answer.text()) == (200, '{"ready": true}')
    assert migrate(database.owner_url) == ["views"]


# The views for psql, on tests/support/data.sql.

ALL = set(range(1, 21))
VISIBLE = {
    "owner": ALL,
    "admin": ALL,
    "alice": {3, 6, 9, 12, 15, 18} | {4, 8, 12, 16, 20},  # hers; and of workspace w1
    "bob": {1, 4, 7, 10, 13, 16, 19} | {2, 6, 10, 14, 18},  # his; and of workspace w2
    "gina": set(range(1, 31)),
    "nobody": set(),
}


MARKS = """
    insert into system_event_read (organization_id, user_id, event_id, read_at) values
      ('acme', 'alice', 4, '2026-01-01 12:00Z'),
      ('acme', 'owner', 4, '2026-01-02 12:00Z'),
      ('acme', 'alice', 12, '2026-01-03 12:00Z'),
      ('acme', 'alice', 1, '2026-01-03 12:00Z'),
      ('acme', 'alice', 99, '2026-01-03 12:00Z'),
      ('globex', 'gina', 4, '2026-01-03 12:00Z')
"""


@pytest.fixture(scope="module")
def example(cluster: Cluster) -> Iterator[str]:
    """A database with tests/support/data.sql and some marks; its address as the service's role."""
    with new_database(cluster, "example") as url:
        psql(url, MARKS)
        yield cluster.url("example", ROLE)


@pytest.mark.parametrize("user", VISIBLE)
def test_system_event_visible_says_who_sees_what(example: str, user: str) -> None:
    """The owner and administrators all of their organization, others some of it."""
    query = f"select event_id from system_event_visible where viewer_id = '{user}'"
    assert set(map(int, psql(example, query).split())) == VISIBLE[user]


@pytest.mark.parametrize(
    ("columns", "view", "where", "answer"),
    [
        # Of what is visible; that alice has marked event 1, which she does not see, is no matter.
        ("event_id", "unread", "user_id = 'alice'", ["3", "6", "8", "9", "15", "16", "18", "20"]),
        ("count(*)", "unread", "user_id = 'owner'", ["19"]),
        ("count(*)", "unread", "user_id = 'gina'", ["29"]),
        ("count(*)", "unread", "user_id = 'nobody'", ["0"]),
        (
            "user_id, name, email, read_at at time zone 'UTC'",
            "reader",
            "organization_id = 'acme' and event_id = 4",
            [
                "alice|Alice Member|alice@acme.example|2026-01-01 12:00:00",
                "owner|Owen Owner|owner@acme.example|2026-01-02 12:00:00",
            ],
        ),
        # Everybody who has not read anything; nobody is in no organization.
        (
            "user_id, unread",
            "unread_count",
            "organization_id = 'acme'",
            ["admin|20", "alice|8", "bob|11", "owner|19"],
        ),
        ("user_id, unread", "unread_count", "user_id = 'gina'", ["gina|29"]),
        ("count(*)", "unread_count", "user_id = 'nobody'", ["0"]),
        ("event_id", "unnoticed", "organization_id = 'acme' and event_id < 6", ["2", "3", "5"]),
        # A row of an event that is gone is inert, until `prune` removes it.
        ("user_id", "reader", "organization_id = 'acme' and event_id = 99", []),
        # Event 4 is seen by owner, admin, alice and bob, and read by two of them; 12 not by bob.
        # Who has read what he does not see, as alice event 1, does not count.
        (
            "event_id, viewers, readers, read_rate",
            "read_rate",
            "organization_id = 'acme' and event_id in (1, 4, 12)",
            ["1|3|0|0.000", "4|4|2|0.500", "12|3|1|0.333"],
        ),
        (
            "viewers, readers, read_rate",
            "read_rate",
            "organization_id = 'globex' and event_id = 4",
            ["1|1|1.000"],
        ),
    ],
)
def test_the_views_answer_what_people_ask(
    example: str, columns: str, view: str, where: str, answer: list[str]
) -> None:
    """What is unread for a user, who has read an event, and how many of those who see it."""
    query = f"select {columns} from system_event_{view} where {where} order by 1"
    assert psql(example, query).splitlines() == answer


# Every kind of user, event and membership, drawn at random, within few names so that they meet.
ANYTHING = """
select setseed({seed});
insert into users
select
  'r' || n, (array['acme', 'globex', null])[1 + floor(random() * 3)], 'name', 'mail',
  (array[0, 1, 2, 254, 255])[1 + floor(random() * 5)]
from generate_series(1, 40) n;
insert into workspace_user
select distinct 'w' || floor(random() * 8), 'r' || 1 + floor(random() * 40)
from generate_series(1, 80);
insert into system_event_log
  (organization_id, id, "timestamp", context, event, context_id, user_id, workspace_id)
select
  (array['acme', 'globex'])[1 + floor(random() * 2)], 100 + n,
  now() - floor(random() * 60) * interval '1 minute', 1, 1, 'thing',
  'r' || 1 + floor(random() * 40),
  case when random() < 0.7 then 'w' || floor(random() * 8) end
from generate_series(1, 300) n;
insert into system_event_read (organization_id, user_id, event_id)
select distinct
  (array['acme', 'globex'])[1 + floor(random() * 2)], 'r' || 1 + floor(random() * 40),
  101 + floor(random() * 300)::int
from generate_series(1, 2000);
"""


@pytest.mark.parametrize("seed", ["0.4", "0.5"])
async def test_the_views_agree_on_who_sees_what(database: Sandbox, seed: str) -> None:
    """What is counted by groups is what is counted one by one."""
    times = "update system_event_read set read_at = now() + random() * interval '1 day'"
    psql(database.owner_url, ANYTHING.format(seed=seed), times)
    for counted, one_by_one in AGREEING:
        assert psql(database.owner_url, counted) == psql(database.owner_url, one_by_one)


AGREEING = [
    (
        "select user_id, unread from system_event_unread_count where unread > 0 order by 1",
        "select user_id, count(*) from system_event_unread group by 1 order by 1",
    ),
    (
        """
        select organization_id, event_id, viewers, readers, half_read_after
        from system_event_read_rate where viewers > 0 order by 1, 2
        """,
        """
        select
          v.organization_id, v.event_id, count(*), count(r.user_id),
          nullif(
            percentile_disc(0.5) within group (order by coalesce(r.read_at, 'infinity')), 'infinity'
          ) - v."timestamp"
        from system_event_visible v
        left join system_event_read r
          on (r.organization_id, r.user_id, r.event_id)
            = (v.organization_id, v.viewer_id, v.event_id)
        group by 1, 2, v."timestamp" order by 1, 2
        """,
    ),
    (
        "select * from system_event_read_rate_by_day order by 1, 2",
        """
        select
          organization_id, (timestamp at time zone 'UTC')::date, count(*), sum(viewers),
          sum(readers), round(sum(readers) / sum(viewers), 3), count(half_read_after),
          percentile_disc(0.5) within group (order by half_read_after)
        from system_event_read_rate
        group by 1, 2 order by 1, 2
        """,
    ),
]
