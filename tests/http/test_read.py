"""POST and DELETE /systemevent/read: the contract, corner by corner."""

import itertools
import json
from collections.abc import AsyncIterator, Hashable
from typing import Any

import pytest

from service.turns import Rotation
from tests.conftest import Sandbox, Start, bearer, token
from tests.support.cluster import Cluster, free_port
from tests.support.shared import Client, Shared, clean, refused, serve

PATH = "/systemevent/read"
MAX_IDS = 5
MAX_BODY = 1024 + 32 * MAX_IDS
REQUIRED = "Provide either id or ids; at least one valid integer id is required"
NONE_VALID = f"{REQUIRED}: none of them is an integer from 1 to 9223372036854775807"

both = pytest.mark.parametrize("method", ["POST", "DELETE"])


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service that takes five ids in a request."""
    async with serve(cluster, LIMITS_MAX_IDS=str(MAX_IDS)) as shared:
        yield shared


database, client = clean()


async def change(client: Client, method: str, body: object, user: str = "alice") -> None:
    """Mark, or unmark, and expect the one answer to that."""
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer = await client.request(method, PATH, data=data, headers=bearer(user))
    assert (answer.status, await answer.read()) == (200, b'{"success":true}')
    assert answer.content_type == "application/json"


async def versions(database: Sandbox) -> list[tuple[Any, ...]]:
    """Every row that is marked, and what changes when it is written again."""
    rows = await database.owner.fetch(
        "select *, xmin, ctid from system_event_read order by organization_id, user_id, event_id"
    )
    return [tuple(row) for row in rows]


def acme(*ids: int, user: str = "alice") -> set[tuple[str, str, int]]:
    """Read rows of a user in acme."""
    return {("acme", user, event_id) for event_id in ids}


# What a number may look like is told in tests/unit/test_ids.py.
GOOD = {
    '{"id": 1}': {1},
    '{"id": 1, "ids": [2, 3]}': {1, 2, 3},
    '{"ids": [1, true, null, "2", -3, 0, 1.5, [4], {"id": 5}, 9223372036854775808]}': {1},
    '{"ids": [1, 25, 999999, 9223372036854775807]}': {1},
    '{"ids": [25]}': set(),
    '{"ids": [999999]}': set(),
}


@pytest.mark.parametrize(("body", "ids"), GOOD.items())
async def test_marks_the_callers_valid_ids(
    client: Client, database: Sandbox, body: str, ids: set[int]
) -> None:
    """One id or many, united; what is no id, foreign or unknown is skipped."""
    await change(client, "POST", body)
    assert await database.read_rows() == acme(*ids)


@pytest.mark.parametrize(("body", "ids"), GOOD.items())
async def test_unmarks_the_callers_valid_ids(
    client: Client, database: Sandbox, body: str, ids: set[int]
) -> None:
    """DELETE reads the same body the same way."""
    await change(client, "POST", {"ids": [1, 2, 3, 4, 5]})
    await change(client, "DELETE", body)
    assert await database.read_rows() == acme(*({1, 2, 3, 4, 5} - ids))


async def test_marks_events_of_the_callers_organization_only(
    client: Client, database: Sandbox
) -> None:
    """An id that two organizations have is each one's own; one of another alone marks nothing."""
    await change(client, "POST", {"ids": [1, 2, 25]})
    await change(client, "POST", {"ids": [2, 25]}, "gina")
    assert await database.read_rows() == acme(1, 2) | {("globex", "gina", n) for n in (2, 25)}


async def test_marking_is_organization_wide(client: Client, database: Sandbox) -> None:
    """Also events that the caller's list does not show can be marked."""
    listed = await client.post("/systemevent", data='{"take": 100}', headers=bearer())
    unseen = set(range(1, 21)) - {event["id"] for event in (await listed.json())["events"]}
    await change(client, "POST", {"id": min(unseen)})
    assert await database.read_rows() == acme(min(unseen))


async def test_unmarks_the_callers_own_records_only(client: Client, database: Sandbox) -> None:
    """Whoever else has read the event still has: in the organization and in another."""
    for user in ("alice", "bob", "gina"):
        await change(client, "POST", {"ids": [1, 2]}, user)
    await change(client, "DELETE", {"ids": [1, 25]})
    gina = {("globex", "gina", 1), ("globex", "gina", 2)}
    assert await database.read_rows() == acme(2) | acme(1, 2, user="bob") | gina


async def test_marking_again_writes_nothing(client: Client, database: Sandbox) -> None:
    """The first read_at is kept, and the row is not written again."""
    await change(client, "POST", {"ids": [1, 2]})
    first = await versions(database)
    for body in ({"id": 1}, {"ids": [2, 1, 2]}, {"ids": [1, 2, 3]}):
        await change(client, "POST", body)
    assert (await versions(database))[:2] == first
    assert await database.read_rows() == acme(1, 2, 3)


async def test_unmarking_again_is_a_success(client: Client, database: Sandbox) -> None:
    """What is not marked cannot be unmarked, and needs no other answer."""
    await change(client, "DELETE", {"ids": [1, 2]})
    await change(client, "POST", {"ids": [1, 2]})
    for _ in range(2):
        await change(client, "DELETE", {"id": 1})
    assert await database.read_rows() == acme(2)


async def test_marking_after_unmarking_takes_a_new_time(client: Client, database: Sandbox) -> None:
    """Unread is forgotten: the next mark is the first one."""
    read_at = "select read_at from system_event_read"
    await change(client, "POST", {"id": 1})
    before = await database.owner.fetchval(read_at)
    await change(client, "DELETE", {"id": 1})
    await change(client, "POST", {"id": 1})
    assert await database.owner.fetchval(read_at) > before


@both
async def test_own_foreign_unknown_and_done_ids_look_the_same(client: Client, method: str) -> None:
    """Status, headers and body do not say whether an event exists."""
    seen = set()
    await change(client, method, {"id": 1})
    for event_id in (1, 2, 25, 999999, 2**63 - 1):
        answer = await client.request(method, PATH, json={"id": event_id}, headers=bearer())
        headers = {k: v for k, v in answer.headers.items() if k not in {"Date", "X-Request-ID"}}
        seen.add((answer.status, tuple(headers.items()), await answer.read()))
    assert len(seen) == 1


@both
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", f"{REQUIRED}: the body is empty"),
        (b"{}", f"{REQUIRED}: the body has neither"),
        (b"[1, 2]", "the body is not a JSON object"),
        (b'{"ids": []}', f"{REQUIRED}: ids is empty"),
        (b'{"id": "1"}', NONE_VALID),
        (b"id=1", "the body is not valid JSON"),
        (b'{"id": 1, "x": "\xff"}', "the body is not valid UTF-8"),
        (b'{"ids": [1, 2, 3, 4, 5, 6]}', f"too many ids: at most {MAX_IDS} in one request"),
    ],
)
async def test_a_body_without_valid_ids_is_refused(
    client: Client, database: Sandbox, method: str, body: bytes, message: str
) -> None:
    """400, with a message that says which rule it breaks; nothing changes."""
    await change(client, "POST", {"id": 1})
    answer = await client.request(method, PATH, data=body, headers=bearer())
    assert answer.status == 400
    assert await refused(answer) == message
    assert await database.read_rows() == acme(1)


INVALID = 'Bearer error="invalid_token", error_description='
ALICE = token("alice")
UNFIT = [b'{"id": 1}', b"", b"[]", b'{"ids": []}', b"{", b"\xff", b'{"ids": [1,2,3,4,5,6]}']


@pytest.mark.parametrize(
    ("credentials", "status", "message", "challenge"),
    [
        (None, 401, "authentication required", "Bearer"),
        ("", 401, "authentication required: not a bearer token", "Bearer"),
        ("Basic YTpi", 401, "authentication required: not a bearer token", "Bearer"),
        (ALICE, 401, "authentication required: not a bearer token", "Bearer"),
        ("Bearer", 401, "malformed token", f'{INVALID}"malformed token"'),
        (f"Bearer {ALICE} x", 401, "malformed token", f'{INVALID}"malformed token"'),
        (f"Bearer {ALICE}, Bearer x", 401, "malformed token", f'{INVALID}"malformed token"'),
        ("Bearer x.y.z", 401, "invalid token", f'{INVALID}"invalid token"'),
        (f"Bearer {ALICE}x", 401, "invalid token", f'{INVALID}"invalid token"'),
        (
            f"Bearer {token('alice', 'another secret of thirty-two bytes or more')}",
            401,
            "invalid token",
            f'{INVALID}"invalid token"',
        ),
        (f"Bearer {token(userId=None)}", 401, "invalid token", f'{INVALID}"invalid token"'),
        (f"Bearer {token(exp=1)}", 401, "token expired", f'{INVALID}"token expired"'),
        (f"Bearer {token('stranger', exp=1)}", 401, "token expired", f'{INVALID}"token expired"'),
        (f"Bearer {token('stranger')}", 401, "user not found", f'{INVALID}"user not found"'),
    ],
)
async def test_who_you_are_comes_before_what_you_said(
    shared: Shared, credentials: str | None, status: int, message: str, challenge: str | None
) -> None:
    """401 for a bad token, then for an unknown user, then 403, whatever the body is."""
    headers = {} if credentials is None else {"Authorization": credentials}
    for method, body in itertools.product(("POST", "DELETE"), UNFIT):
        answer = await shared.client.request(method, PATH, data=body, headers=headers)
        assert (answer.status, await refused(answer)) == (status, message)
        assert answer.headers.get("WWW-Authenticate") == challenge


@pytest.mark.parametrize("body", UNFIT[1:])
async def test_marking_needs_an_organization_and_unmarking_does_not(
    client: Client, body: bytes
) -> None:
    """403 whatever the body is; without one there is nothing to remove, so only the body counts."""
    headers = bearer("nobody")
    posted = await client.post(PATH, data=body, headers=headers)
    assert (posted.status, await refused(posted)) == (
        403,
        "user not associated with an organization",
    )
    deleted = await client.delete(PATH, data=body, headers=headers)
    assert deleted.status == 400
    await change(client, "DELETE", {"ids": [1, 25]}, "nobody")


async def test_who_is_refused_changes_nothing(client: Client, database: Sandbox) -> None:
    """Neither a mark nor the lack of one."""
    await change(client, "POST", {"id": 1})
    rows = await versions(database)
    for headers in ({}, bearer(exp=1), bearer("stranger"), bearer("nobody")):
        for method in ("POST", "DELETE"):
            await client.request(method, PATH, json={"ids": [1, 2]}, headers=headers)
    assert await versions(database) == rows


@both
async def test_a_token_elsewhere_is_no_token(
    client: Client, database: Sandbox, method: str
) -> None:
    """Not in the URL, not in a cookie, not in the body, not in another header."""
    valid = token()
    attempts: list[dict[str, Any]] = [
        {"params": {"access_token": valid}},
        {"params": {"token": valid}},
        {"headers": {"Cookie": f"access_token={valid}; token={valid}; Authorization={valid}"}},
        {"data": json.dumps({"id": 1, "access_token": valid, "token": valid})},
        {"headers": {"X-Authorization": f"Bearer {valid}", "X-Access-Token": valid}},
        {"headers": {"Proxy-Authorization": f"Bearer {valid}"}},
    ]
    for attempt in attempts:
        answer = await client.request(method, PATH, **{"data": '{"id": 1}', **attempt})
        assert (answer.status, await refused(answer)) == (401, "authentication required")
    assert await database.read_rows() == set()


@pytest.mark.parametrize("claim", ["orgId", "organization_id", "org", "organizationId"])
async def test_an_organization_in_the_token_is_not_believed(
    client: Client, database: Sandbox, claim: str
) -> None:
    """The database says where a user belongs."""
    for user, status in (("alice", 200), ("nobody", 403), ("stranger", 401)):
        answer = await client.post(
            PATH, json={"ids": [1, 25]}, headers=bearer(user, **{claim: "globex"})
        )
        assert answer.status == status
    assert await database.read_rows() == acme(1)


async def test_a_user_who_moves_takes_no_access_along(client: Client, database: Sandbox) -> None:
    """From then on the same token marks, and unmarks, in the new organization only."""
    headers = bearer("mover")
    await database.owner.execute(
        "insert into users (id, organization_id, name, email) values ('mover', 'acme', '', '')"
    )
    seen = []
    for organization in ("acme", "globex", None, "acme"):
        await database.owner.execute(
            "update users set organization_id = $1 where id = 'mover'", organization
        )
        posted = await client.post(PATH, json={"ids": [1, 25]}, headers=headers)
        deleted = await client.delete(PATH, json={"ids": [1]}, headers=headers)
        rows = {(row[0], row[2]) for row in await database.read_rows()}
        seen.append((posted.status, deleted.status, rows))
    assert seen == [
        (200, 200, set()),
        (200, 200, {("globex", 25)}),
        (403, 200, {("globex", 25)}),
        (200, 200, {("globex", 25)}),
    ]


@both
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "x"],
)
async def test_the_content_type_is_not_checked(
    client: Client, database: Sandbox, method: str, content_type: str
) -> None:
    """The body decides."""
    await change(client, "POST", {"ids": [2]})
    headers = {**bearer(), "Content-Type": content_type}
    answer = await client.request(method, PATH, data=b'{"ids": [1, 2]}', headers=headers)
    assert answer.status == 200
    assert await database.read_rows() == (acme(1, 2) if method == "POST" else set())


@both
async def test_a_body_that_is_too_large_is_refused(
    client: Client, database: Sandbox, method: str
) -> None:
    """The limit follows from that on ids; up to it white space is no offence."""
    fits = b'{"id": 1}'.ljust(MAX_BODY)

    async def chunks() -> AsyncIterator[bytes]:
        yield fits
        yield b" "

    await change(client, method, fits)
    rows = await database.read_rows()
    for body in (fits + b" ", chunks()):
        answer = await client.request(method, PATH, data=body, headers=bearer())
        assert answer.status == 413
        assert str(MAX_IDS) in await refused(answer)
    assert await database.read_rows() == rows


@both
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity", "x", ""])
async def test_a_body_with_an_encoding_is_refused(
    client: Client, database: Sandbox, method: str, encoding: str
) -> None:
    """415 for any Content-Encoding, whatever the body is."""
    headers = {**bearer(), "Content-Encoding": encoding}
    answer = await client.request(method, PATH, data=b'{"id": 1}', headers=headers)
    assert answer.status == 415
    await refused(answer)
    assert await database.read_rows() == set()


@both
@pytest.mark.parametrize(
    "path",
    [
        f"{PATH}/",
        "/systemevent//read",
        "/systemevent/READ",
        "/SystemEvent/read",
        "/systemevent/read/1",
        "/systemevent/",
        "/systemevents/read",
        "/v1/systemevent/read",
        "/",
    ],
)
async def test_another_path_is_not_found(
    client: Client, database: Sandbox, method: str, path: str
) -> None:
    """A trailing slash or another letter case is another path; nothing redirects."""
    answer = await client.request(
        method, path, json={"id": 1}, headers=bearer(), allow_redirects=False
    )
    assert (answer.status, await refused(answer)) == (404, "not found")
    assert await database.read_rows() == set()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("path", "allowed"), [(PATH, {"POST", "DELETE"}), ("/systemevent", {"POST"})]
)
@pytest.mark.parametrize("headers", [bearer(), {}], ids=["token", "no token"])
async def test_another_method_is_not_allowed(
    client: Client, method: str, path: str, allowed: set[str], headers: dict[str, str]
) -> None:
    """405, and Allow says what is."""
    answer = await client.request(method, path, json={"id": 1}, headers=headers)
    assert answer.status == 405
    assert {name.strip() for name in answer.headers["Allow"].split(",")} == allowed
    if method == "HEAD":
        assert await answer.read() == b""
    else:
        assert await refused(answer) == "method not allowed"


ANSWERS: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "200": ("POST", PATH, b'{"id": 1}', bearer()),
    "400": ("POST", PATH, b"", bearer()),
    "401": ("POST", PATH, b'{"id": 1}', {}),
    "403": ("POST", PATH, b'{"id": 1}', bearer("nobody")),
    "404": ("POST", "/nowhere", b"", bearer()),
    "405": ("PUT", PATH, b"", bearer()),
    "413": ("POST", PATH, b" " * (MAX_BODY + 1), bearer()),
    "415": ("POST", PATH, b'{"id": 1}', {**bearer(), "Content-Encoding": "gzip"}),
    "list": ("POST", "/systemevent", b"", bearer()),
}


@pytest.mark.parametrize(("method", "path", "body", "headers"), ANSWERS.values(), ids=ANSWERS)
async def test_every_answer_carries_the_common_headers(
    client: Client, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Not stored, not sniffed, no versions told, and a request id to ask the operator about."""
    answer = await client.request(method, path, data=body, headers=headers)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "systemevent-read"
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    assert answer.headers["X-Request-ID"]
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("given", ["a", "0", "req-1_2.3", "x" * 64])
async def test_a_sane_request_id_is_echoed(client: Client, given: str) -> None:
    """The caller's id is ours."""
    answer = await client.post(PATH, json={"id": 1}, headers={**bearer(), "X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 65, "a b", "a\tb", "é", "<b>", '"', "a,b", "{}", "a/b"]
)
async def test_another_request_id_is_replaced(client: Client, given: str) -> None:
    """What could forge a log line or a page is not repeated; each request gets its own."""
    headers = {**bearer(), "X-Request-ID": given}
    made = {
        (await client.post(PATH, json={"id": 1}, headers=headers)).headers["X-Request-ID"]
        for _ in range(2)
    }
    assert len(made) == 2
    assert given not in made


@both
async def test_a_database_away_is_temporary(start: Start, method: str) -> None:
    """503 with Retry-After once the deadline has passed, and no word of why."""
    url = f"postgresql://bell@127.0.0.1:{free_port()}/away"
    limits = {"LIMITS_DEADLINE": "0.2", "LIMITS_BODY_DEADLINE": "0.2"}
    client = await start(url, ready=False, **limits)
    answer = await client.request(method, PATH, json={"id": 1}, headers=bearer())
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "bell" not in await refused(answer)


@both
async def test_a_fault_of_ours_is_not_described(
    client: Client, database: Sandbox, method: str
) -> None:
    """500, with nothing about the inside; and once mended, served again."""
    await database.owner.execute("alter table system_event_read rename to lost")
    try:
        answer = await client.request(method, PATH, json={"id": 1}, headers=bearer())
    finally:
        await database.owner.execute("alter table lost rename to system_event_read")
    assert (answer.status, await refused(answer)) == (500, "internal server error")
    await change(client, method, {"id": 1})


async def test_long_bodies_are_read_in_turns_of_their_callers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a hundred of them hold the loop no longer than one; a short body waits for no turn."""
    client, callers = await start(), list[Hashable]()

    async def turn(rotation: Rotation, caller: Hashable, deadline: float) -> None:
        callers.append(caller)
        await given(rotation, caller, deadline)

    given = Rotation.turn
    monkeypatch.setattr(Rotation, "turn", turn)
    for user, ids in (("alice", range(1, 3000)), ("bob", range(1, 3000)), ("owner", [1])):
        await change(client, "POST", {"ids": [*ids]}, user)
    assert callers == ["alice", "bob"]
