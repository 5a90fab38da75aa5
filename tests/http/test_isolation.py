"""Whoever asks for whatever ids, at once or one after the other: the rows are what a model says."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Sandbox, bearer
from tests.http.test_list import SEEN
from tests.support.cluster import Cluster
from tests.support.shared import Shared, serve

Row: TypeAlias = tuple[str, str, int]

# tests/support/data.sql
ORGANIZATIONS = {
    "owner": "acme",
    "admin": "acme",
    "alice": "acme",
    "bob": "acme",
    "gina": "globex",
    "nobody": None,
}
EVENTS = {"acme": range(1, 21), "globex": range(1, 31)}
ALL = "/systemevent/read/all"
VISIBLE = {user: {event["id"] for event in seen} for user, seen in SEEN.items()}
VISIBLE["gina"] = set(EVENTS["globex"])
HEADERS = {user: bearer(user) for user in (*ORGANIZATIONS, "stranger")}

# An element of ids: how it is written, and the id that it is.
event_ids = st.one_of(
    st.integers(1, 8),  # in both organizations; few, so that requests overlap
    st.integers(18, 33),  # in both, in one, in none
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1]),
)
well_formed = st.one_of(
    event_ids.map(lambda n: (str(n), n)),
    event_ids.map(lambda n: (f"{n}.0", n)),
    event_ids.map(lambda n: (f"{n}0e-1", n)),
)
malformed = st.sampled_from(
    [
        "0",
        "-1",
        "1.5",
        "9223372036854775808",
        "1e400",
        '"1"',
        "true",
        "null",
        "[2]",
        '{"id": 3}',
        '""',
    ]
).map(lambda text: (text, None))
elements = st.lists(st.one_of(well_formed, well_formed, malformed), max_size=6)


class Request:
    """What a user asks for, and what should come of it."""

    def __init__(self, user: str, ids: list[tuple[str, int | None]], *, with_id: bool) -> None:
        """Ask for `ids`, the first of them in `id` if so wished."""
        self.user = user
        texts = [text for text, _ in ids]
        one, many = (texts[:1], texts[1:]) if with_id else ([], texts)
        members = [*(f'"id": {text}' for text in one), f'"ids": [{", ".join(many)}]']
        self.body = f"{{{', '.join(members)}}}"
        organization = ORGANIZATIONS.get(user)
        valid = {event_id for _, event_id in ids if event_id is not None}
        self.rows: set[Row] = set()
        well_said = 200 if valid else 400
        if user not in ORGANIZATIONS:
            self.status = {"POST": 401, "DELETE": 401, ALL: 401}
        elif organization is None:  # which DELETE does not ask for
            self.status = {"POST": 403, "DELETE": well_said, ALL: 403}
        else:
            self.status = {"POST": well_said, "DELETE": well_said, ALL: 200}
            self.rows = {(organization, user, n) for n in valid if n in EVENTS[organization]}
        # All, up to one of the ids: ids grow with the age.
        self.up_to = min(valid, default=None)
        self.all_rows: set[Row] = set()
        if organization and (self.up_to is None or self.up_to in EVENTS[organization]):
            seen = {n for n in VISIBLE[user] if n >= (self.up_to or 0)}
            self.all_rows = {(organization, user, n) for n in seen}

    def __repr__(self) -> str:
        """For the report of a failure."""
        return f"{self.user}: {self.body}"


requests = st.builds(Request, st.sampled_from(list(HEADERS)), elements, with_id=st.booleans())
rounds = st.lists(
    st.tuples(st.sampled_from(["POST", "POST", "DELETE", ALL]), st.lists(requests, max_size=6)),
    max_size=5,
)


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service with the default configuration."""
    async with serve(cluster) as shared:
        yield shared


async def marks(database: Sandbox) -> dict[Row, datetime]:
    """What is marked, and since when."""
    rows = await database.owner.fetch("table system_event_read")
    return {(row[0], row[1], row[2]): row[3] for row in rows}


async def send(shared: Shared, method: str, request: Request) -> None:
    """Send a request, and check its answer."""
    path, body = "/systemevent/read", request.body
    if method == ALL:
        path, body = ALL, json.dumps({"upTo": request.up_to})
    answer = await shared.client.request(
        "POST" if method == ALL else method, path, data=body, headers=HEADERS[request.user]
    )
    assert answer.status == request.status[method]
    body = json.loads(await answer.read())
    assert body == {"success": True} if answer.status == 200 else list(body) == ["error"]


def asked(method: str, requests: list[Request]) -> set[Row]:
    """The rows that requests are about."""
    return set().union(*(r.all_rows if method == ALL else r.rows for r in requests))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds)
async def test_rows_are_what_the_model_says(
    shared: Shared, rounds: list[tuple[str, list[Request]]]
) -> None:
    """In rounds of requests at once, each changes its caller's rows, as asked, and no others."""
    await shared.database.owner.execute("delete from system_event_read")
    expected: dict[Row, datetime] = {}
    for method, round_ in rounds:
        await asyncio.gather(*(send(shared, method, request) for request in round_))
        rows = asked(method, round_)
        wanted = expected.keys() - rows if method == "DELETE" else expected.keys() | rows
        after = await marks(shared.database)
        assert after.keys() == wanted
        # What was marked before keeps its first time.
        assert all(after[row] == read_at for row, read_at in expected.items() if row in after)
        expected = after


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["POST", "DELETE", ALL]), requests), max_size=12))
async def test_marking_and_unmarking_at_once_stays_within_what_was_asked(
    shared: Shared, mixed: list[tuple[str, Request]]
) -> None:
    """Whatever commits first: a row that nobody unmarks is there, one that nobody marks is not."""
    await shared.database.owner.execute("delete from system_event_read")
    await asyncio.gather(*(send(shared, method, request) for method, request in mixed))
    posted = set().union(*(asked(method, [r]) for method, r in mixed if method != "DELETE"))
    deleted = set().union(*(asked(method, [r]) for method, r in mixed if method == "DELETE"))
    assert posted - deleted <= (await marks(shared.database)).keys() <= posted
