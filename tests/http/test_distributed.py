"""A database that refuses a statement without the organization, as a distributed one does."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from service import app
from service.database.queries import load_queries
from tests.conftest import Sandbox, Service, Start, bearer
from tests.http.test_admin import ask, not_ready
from tests.http.test_list import SEEN

SHARDED = """
create function sharded(organization text) returns text immutable language plpgsql as $$
begin
  if organization is null then
    raise feature_not_supported using message = 'in multi-shard queries';
  end if;
  return organization;
end $$
"""
NAMES = ("list_events", "page_events", "count_unread", "place", "mark_all")
Change = Callable[[Sequence[str], str, str], None]
PATHS = ("", "/count", "/read/all")
BODIES: Sequence[dict[str, object]] = (
    {},
    {"take": 3, "cursor": None},
    {"showUnread": True, "event": "x"},
    {"upTo": 4},
)


@pytest.fixture
async def change(database: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Changes texts of statements, for services that start from now on."""
    await database.owner.execute(SHARDED)
    queries = load_queries()

    def change(names: Sequence[str], old: str, new: str) -> None:
        nonlocal queries
        texts = {name: getattr(queries, name).replace(old, new) for name in names}
        queries = replace(queries, **texts)
        monkeypatch.setattr(app, "load_queries", lambda: queries)

    return change


async def answers(client: Any, user: str) -> list[Any]:
    """What a user is told, call for call."""
    found = []
    for path in PATHS:
        for body in BODIES:
            url = f"/systemevent{path}"
            async with client.post(url, json=body, headers=bearer(user)) as answer:
                told = await answer.json()
                told.update({"nextCursor": None} if "nextCursor" in told else {})  # holds a time
                found.append((answer.status, told))
    return found


async def test_the_organization_is_looked_up_first(
    start: Start, database: Sandbox, change: Change
) -> None:
    """Every caller is told what a single server tells, and what is marked is the same."""
    users = [*SEEN, "nobody", "stranger"]
    plain = await start()
    expected = {user: await answers(plain, user) for user in users}
    marked = await database.read_rows()
    assert marked
    await database.owner.execute("delete from system_event_read")
    change(NAMES, "$2::text", "sharded($2::text)")
    client = await start()
    assert {user: await answers(client, user) for user in users} == expected
    assert await database.read_rows() == marked


async def test_a_caller_who_moves_in_between(
    start: Start, database: Sandbox, change: Change
) -> None:
    """A statement with the organization of before finds nothing, so both are asked again."""
    await database.owner.execute("create sequence looked; grant usage on looked to public")
    change(NAMES, "$2::text", "sharded($2::text)")
    before = "case nextval('looked') when 1 then 'globex' else u.organization_id end"
    change(["caller"], "u.organization_id from", f"{before} as organization_id from")
    client = await start()
    async with client.post("/systemevent", json={"take": 100}, headers=bearer()) as answer:
        events = (await answer.json())["events"]
    assert [event["id"] for event in events] == [event["id"] for event in SEEN["alice"]]
    assert await database.owner.fetchval("select last_value from looked") == 2


async def test_a_statement_that_is_refused_is_named(start: Start, change: Change) -> None:
    """The start ends with the server's reason, and not as if the URL led nowhere."""
    change(["page_events"], "$2::text", "sharded(nullif($2::text, ''))")
    client = await start(ready=False)
    reason = "reached, but it refuses sql/page_events.sql: in multi-shard queries"
    assert await ask(client) == not_ready(reason)
    service = client.server
    assert isinstance(service, Service)
    while not service.given_up:
        await asyncio.sleep(0)
    assert str(service.given_up[0]) == f"database.url: {reason}"
