"""A platform with names and types of its own, served through views; and the views for psql."""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from service.database import WRITE_SETTINGS
from service.migrations import migrate
from service.queries import load_queries
from tests.cluster import Cluster
from tests.conftest import HERE, ROLE, Service, bearer, psql

DEPLOY = HERE.parent / "deploy"


def uid(kind: int, number: int = 0) -> str:
    """A uuid for a test to recognize."""
    return str(UUID(int=kind << 64 | number))


COMPANY, OTHER_COMPANY = uid(1, 1), uid(1, 2)
OWNER, MEMBER, LONER, STRANGER = uid(2, 1), uid(2, 2), uid(2, 3), uid(2, 4)
WORKSPACE = uid(3)

# The tables that deploy/platform_views.sql expects, and enough rows for an index to be worth it.
PLATFORM = f"""
create table account (
  uuid uuid primary key, company uuid, full_name text not null, mail text not null, level text
);
create table audit (
  serial bigint not null, company uuid not null, happened_at timestamptz not null,
  kind smallint not null, action smallint not null, subject text not null, actor uuid not null,
  workspace uuid, details jsonb, primary key (company, serial)
);
create table member (workspace uuid, account uuid, primary key (workspace, account));
insert into account values
  ('{OWNER}', '{COMPANY}', 'Olga Owner', 'olga@example.org', 'owner'),
  ('{MEMBER}', '{COMPANY}', 'Mia Member', 'mia@example.org', 'member'),
  ('{LONER}', null, 'Leo Loner', 'leo@example.org', 'member'),
  ('{STRANGER}', '{OTHER_COMPANY}', 'Sam Stranger', 'sam@example.org', 'admin');
insert into account
select md5(n::text)::uuid, '{OTHER_COMPANY}', 'name', 'mail', null from generate_series(1, 2000) n;
insert into member values ('{WORKSPACE}', '{MEMBER}');
insert into audit values
  (1, '{COMPANY}', now() - interval '3 hours', 2, 0, 'repo', '{OWNER}', null, '{{"size": 1}}'),
  (2, '{COMPANY}', now() - interval '2 hours', 3, 1, 'user', '{MEMBER}', null, null),
  (3, '{COMPANY}', now() - interval '1 hours', 0, 2, 'workspace', '{OWNER}', '{WORKSPACE}', null),
  (4, '{OTHER_COMPANY}', now(), 1, 0, 'bucket', '{STRANGER}', '{WORKSPACE}', null);
insert into audit
select n, '{OTHER_COMPANY}', now() - n * interval '1 hour', 1, 0, 'bucket', '{STRANGER}', null, null
from generate_series(5, 5000) n;
"""  # noqa: S608


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

    async def list(self, user: str) -> list[dict[str, Any]]:
        """The events that a user sees, newest first."""
        async with self.client.post("/systemevent", json={}, headers=bearer(user)) as answer:
            assert answer.status == 200
            events: list[dict[str, Any]] = (await answer.json())["events"]
            return events


@pytest.fixture(scope="module")
async def platform(cluster: Cluster) -> AsyncIterator[Platform]:
    """The steps of the README: the platform is there, then the views, migrate, grants, serve."""
    psql(cluster.url(), "create database platform")
    url = cluster.url("platform")
    psql(url, PLATFORM, f"@{DEPLOY}/platform_views.sql")
    migrate(url)
    psql(url, f"@{DEPLOY}/grants.sql", "vacuum analyze", role=ROLE)
    service = Service(cluster.url("platform", ROLE), {})
    async with TestClient(service) as client:
        yield Platform(url, client)
    psql(cluster.url(), "drop database platform with (force)")


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


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_marking_uses_the_indexes_on_expressions(platform: Platform, mode: str) -> None:
    """Users and events are looked up by just the expressions that the views show."""
    query = load_queries().mark_read
    arguments = f"array['{MEMBER}'], array['{MEMBER}'], array[2]::bigint[]"
    plan = psql(
        platform.url,
        *(f"set {name} = {value}" for name, value in WRITE_SETTINGS.items()),
        f"set plan_cache_mode = {mode}",
        f"prepare mark (text[], text[], bigint[]) as {query}",
        f"explain (format json) execute mark ({arguments})",
    )
    used = set(indexes(json.loads(plan)[0]["Plan"]))
    assert used == {"account_id_text_idx", "audit_id_idx"}


def indexes(node: dict[str, Any]) -> list[str]:
    """Names of the indexes that a plan uses; and "none" for each table that is read without."""
    below = itertools.chain.from_iterable(map(indexes, node.get("Plans", ())))
    used = {"Seq Scan": "none"}.get(node["Node Type"]) or node.get("Index Name")
    return [*below, *([used] if used else [])]


# The views for psql, on tests/data.sql.

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
      ('globex', 'gina', 4, '2026-01-03 12:00Z')
"""


@pytest.fixture(scope="module")
def example(cluster: Cluster) -> Iterator[str]:
    """A database with tests/data.sql and some marks; its address as the service's role."""
    psql(cluster.url(), "create database example template template_migrated")
    psql(cluster.url("example"), MARKS)
    yield cluster.url("example", ROLE)
    psql(cluster.url(), "drop database example with (force)")


@pytest.mark.parametrize("user", VISIBLE)
def test_system_event_visible_says_who_sees_what(example: str, user: str) -> None:
    """The owner and administrators all of their organization, others some of it."""
    query = f"select event_id from system_event_visible where viewer_id = '{user}'"  # noqa: S608
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
    query = f"select {columns} from system_event_{view} where {where} order by 1"  # noqa: S608
    assert psql(example, query).splitlines() == answer
