"""Lists and counts from a streaming replica: what was just marked is never seen undone."""

import asyncio
import contextlib
import itertools
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from service.database import replica as replica_module
from service.database.queries import load_queries
from service.web.marked import HEADER
from tests.conftest import ROLE, ROOT, SECRET, Service, bearer, psql, serving_postgres
from tests.support.cluster import Cluster, replica_of
from tests.support.metrics import scrape
from tests.support.process import Process, run

Client = TestClient[Any, Any]
PRIMARY = {str(HEADER): "999999999999999"}  # nobody but the primary can be that far
Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    """A PostgreSQL with the service's schema in its database postgres."""
    with serving_postgres(max_wal_senders="4") as server:
        yield server


@pytest.fixture(scope="module")
def module_replica(primary: Cluster) -> Iterator[Cluster]:
    with replica_of(primary) as server:
        yield server


@pytest.fixture
async def owner(primary: Cluster) -> AsyncIterator[Owner]:
    """A session on the primary; nothing is marked."""
    connection = await asyncpg.connect(primary.url())
    await connection.execute("delete from system_event_read")
    yield connection
    await connection.close()


@pytest.fixture
async def replay(module_replica: Cluster, owner: Owner) -> AsyncIterator[Owner]:
    """A session on the replica, which replays all that there is."""
    if not module_replica.running():
        module_replica.start()
    connection = await asyncpg.connect(module_replica.url())
    await connection.execute("select pg_wal_replay_resume()")
    await until_replayed(owner, connection)
    yield connection
    if not connection.is_closed():
        await connection.execute("select pg_wal_replay_resume()")
        await connection.close()


@pytest.fixture
def replica(module_replica: Cluster, replay: Owner) -> Cluster:
    """It streams and replays."""
    return module_replica


async def until_replayed(owner: Owner, replay: Owner) -> None:
    """Wait until the replica has all that the primary has."""
    wanted = await owner.fetchval("select pg_current_wal_lsn()")
    async with asyncio.timeout(30):
        while not await replay.fetchval("select pg_last_wal_replay_lsn() >= $1", wanted):
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the servers so often that no test has to wait for it."""
    monkeypatch.setattr(replica_module, "INTERVAL", 0.05)


@contextlib.asynccontextmanager
async def serving(primary: Cluster, read_url: str, **environ: str) -> AsyncIterator[Client]:
    """A client of a service that has both; it is ready."""
    service = Service(primary.url(user=ROLE), {"DATABASE_READ_URL": read_url, **environ})
    async with TestClient(service) as client:
        async with asyncio.timeout(30):
            while (await ready(client))[0] != 200:
                pass
        yield client


async def ready(client: Client) -> tuple[int, Any]:
    """What /ready says."""
    assert isinstance(client.server, Service)
    async with aiohttp.request("GET", f"{client.server.admin}/ready") as answer:
        return answer.status, await answer.json()


async def until_used(client: Client, *, used: bool = True) -> dict[str, Any]:
    """Wait until the replica is used, or left; what /ready says of it. Always it is 200."""
    async with asyncio.timeout(30):
        while True:
            status, told = await ready(client)
            assert status == 200
            if told["replica"]["used"] == used:
                return dict(told["replica"])
            await asyncio.sleep(0.01)


async def reads(client: Client, outcome: str) -> float:
    """How many lists and counts had this outcome."""
    assert isinstance(client.server, Service)
    found = await scrape(client.server.admin)
    return found.sum("replica_reads_total", outcome=outcome)


async def ask(client: Client, path: str, body: object, **headers: str) -> Any:
    """A call that succeeds, as alice; its answer, and the moment in its head."""
    given = {**bearer(), **headers}
    async with client.post(f"/systemevent{path}", json=body, headers=given) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def mark(client: Client, *ids: int, method: str = "POST") -> dict[str, str]:
    """Mark, or with DELETE unmark; the header for who reads after it."""
    async with client.request(
        method, "/systemevent/read", json={"ids": ids}, headers=bearer()
    ) as answer:
        assert answer.status == 200
        return {str(HEADER): answer.headers[HEADER]}


async def unread(client: Client, **headers: str) -> set[int]:
    """The ids of what is unread, as a list, pages and a count say together."""
    body = {"showUnread": True, "take": 100}
    listed = await ask(client, "", body, **headers)
    paged = await ask(client, "", {**body, "cursor": None}, **headers)
    counted = await ask(client, "/count", {}, **headers)
    ids = {event["id"] for event in listed["events"]}
    assert ids == {event["id"] for event in paged["events"]}
    assert len(ids) == counted["count"]
    return ids


async def test_lists_counts_and_pages_are_read_from_the_replica(
    primary: Cluster, replica: Cluster
) -> None:
    """And marks are not: they could not."""
    async with serving(primary, replica.url(user=ROLE)) as client:
        told = await until_used(client)
        assert told["lag"] < 10
        assert len(await unread(client)) > 5
        assert await reads(client, "answered") == 3
        await mark(client, 2)
        assert isinstance(client.server, Service)
        found = await scrape(client.server.admin)
        assert found.sum("replica_lag_seconds") < 10


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.faults)])
async def test_a_mark_is_seen_at_once_though_the_replica_stands_still(
    primary: Cluster, replica: Cluster, replay: Owner, times: int
) -> None:
    """Each time, by who sends nothing along; then by all, from the replica."""
    async with serving(primary, replica.url(user=ROLE)) as client:
        await until_used(client)
        before = await unread(client)
        await replay.execute("select pg_wal_replay_pause()")
        (one, *_) = before
        for number in range(times):
            await mark(client, one, method=("POST", "DELETE")[number % 2])
            assert (one in await unread(client)) == bool(number % 2)
        await mark(client, one)
        await replay.execute("select pg_wal_replay_resume()")
        answered = await reads(client, "answered")
        async with asyncio.timeout(30):
            while await reads(client, "answered") < answered + 3:
                assert await unread(client) == before - {one}


async def test_another_instance_shows_it_to_who_sends_the_moment_along(
    primary: Cluster, replica: Cluster, replay: Owner
) -> None:
    """Whoever does not may see the past, by database.read_lag at most."""
    async with (
        serving(primary, replica.url(user=ROLE)) as one,
        serving(primary, replica.url(user=ROLE)) as other,
    ):
        for client in (one, other):
            await until_used(client)
        before = await unread(other)
        await replay.execute("select pg_wal_replay_pause()")
        for number, event_id in enumerate(sorted(before)):
            moment = await mark((one, other)[number % 2], event_id)
            assert event_id not in await unread((other, one)[number % 2], **moment)
        await mark(one, *before, method="DELETE")
        moment = await mark_all(one)
        assert await unread(other, **moment) == set()


async def mark_all(client: Client) -> dict[str, str]:
    """Mark all; the header for who reads after it."""
    async with client.post("/systemevent/read/all", headers=bearer()) as answer:
        assert answer.status == 200
        return {str(HEADER): answer.headers[HEADER]}


async def test_without_the_moment_another_instance_reads_the_past(
    primary: Cluster, replica: Cluster, replay: Owner
) -> None:
    """So it is the moment that makes the difference."""
    async with (
        serving(primary, replica.url(user=ROLE), DATABASE_READ_LAG="600") as one,
        serving(primary, replica.url(user=ROLE), DATABASE_READ_LAG="600") as other,
    ):
        await until_used(other)
        before = await unread(other)
        await replay.execute("select pg_wal_replay_pause()")
        moment = await mark(one, *before)
        assert await unread(other) == before
        assert await unread(other, **moment) == set()


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        ("999999999999999", "not yet"),
        ("0", "answered"),
        ("", "answered"),
        ("1e9", "answered"),
        ("-5", "answered"),
        ("9999999999999999", "answered"),  # no moment: a digit too many
        ("٣٣٣٣٣٣٣٣٣٣", "answered"),
        ("1764190000, 1764190001", "answered"),
    ],
)
async def test_whatever_is_sent_as_a_moment_harms_nobody(
    primary: Cluster, replica: Cluster, sent: str, outcome: str
) -> None:
    async with serving(primary, replica.url(user=ROLE)) as client:
        await until_used(client)
        assert await unread(client, **{str(HEADER): sent})
        assert await reads(client, outcome) == 3


async def test_pages_leave_out_nothing_where_the_next_one_is_read_from_a_server_behind(
    primary: Cluster, replica: Cluster, owner: Owner, replay: Owner
) -> None:
    """The first is read from the primary, and shows what the replica does not have."""
    columns = "(organization_id, id, context, event, context_id, user_id)"
    new = "select 'acme', id, 0, 0, 'x', 'alice' from generate_series(50, 59) id"
    async with serving(primary, replica.url(user=ROLE)) as client:
        await until_used(client)
        await replay.execute("select pg_wal_replay_pause()")
        await owner.execute(f"insert into system_event_log {columns} {new}")
        try:
            page = await ask(client, "", {"cursor": None, "take": 3}, **PRIMARY)
            found = [event["id"] for event in page["events"]]
            while page["nextCursor"]:
                page = await ask(client, "", {"cursor": page["nextCursor"], "take": 3})
                found += [event["id"] for event in page["events"]]
            assert set(range(50, 60)) <= set(found)
            assert await reads(client, "answered") == 0
        finally:
            await owner.execute("delete from system_event_log where id between 50 and 59")


async def test_who_is_not_there_yet_is_looked_for_on_the_primary(
    primary: Cluster, replica: Cluster, owner: Owner, replay: Owner
) -> None:
    """Nobody is refused for being new."""
    async with serving(primary, replica.url(user=ROLE)) as client:
        await until_used(client)
        await replay.execute("select pg_wal_replay_pause()")
        await owner.execute("insert into users values ('new', 'acme', 'New', 'n@x.example', 0)")
        try:
            async with client.post("/systemevent/count", headers=bearer("new")) as answer:
                assert answer.status == 200
            assert await reads(client, "empty") == 1
        finally:
            await owner.execute("delete from users where id = 'new'")


async def test_one_too_far_behind_is_left_and_taken_again(
    primary: Cluster,
    replica: Cluster,
    owner: Owner,
    replay: Owner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each told once in the log; /ready and the metrics tell it all the time."""
    caplog.set_level("INFO", "service.database")
    async with serving(primary, replica.url(user=ROLE), DATABASE_READ_LAG="2") as client:
        await until_used(client)
        await replay.execute("select pg_wal_replay_pause()")
        await owner.execute("insert into system_event_read values ('acme', 'bob', 1)")
        told = await until_used(client, used=False)
        assert told["reason"].endswith("s behind")
        assert 1 not in await unread(client)
        assert await reads(client, "left") == 3
        assert isinstance(client.server, Service)
        found = await scrape(client.server.admin)
        assert found.sum("replica_used") == 0
        assert found.sum("replica_lag_seconds") > 2
        await replay.execute("select pg_wal_replay_resume()")
        assert (await until_used(client))["lag"] <= 2
        assert (await scrape(client.server.admin)).sum("replica_used") == 1
    hosts = f"127.0.0.1:{replica.port}"
    lines = [record.getMessage().partition(f" {hosts}")[0] for record in caplog.records]
    assert lines == ["replica used:", "replica left:", "replica used:"]


async def test_a_service_starts_without_its_replica_and_takes_it_when_it_is_there(
    primary: Cluster, replica: Cluster, replay: Owner
) -> None:
    """/ready is 200 all the time, and all is answered."""
    await replay.close()
    replica.stop()
    async with serving(primary, replica.url(user=ROLE)) as client:
        async with asyncio.timeout(30):
            while "connect" not in (await until_used(client, used=False))["reason"].lower():
                pass
        assert await unread(client)
        replica.start()
        await until_used(client)
        assert await unread(client)
        assert await reads(client, "answered") == 3


async def test_a_read_that_fails_there_is_answered_by_the_primary(
    primary: Cluster, replica: Cluster, replay: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections die under it."""
    terminate = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
    monkeypatch.setattr(replica_module, "PAUSE", 0.1)
    async with serving(primary, replica.url(user=ROLE)) as client:
        async with asyncio.timeout(30):
            while not await reads(client, "failed"):
                await until_used(client)
                await replay.execute(terminate)
                assert await unread(client)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (("postgres", "stranger"), "permission denied"),
        (("nowhere", ROLE), 'database "nowhere" does not exist'),
        (("template1", ROLE), "not the same database"),
    ],
)
async def test_one_that_cannot_do_it_is_left(
    primary: Cluster, replica: Cluster, owner: Owner, where: tuple[str, str], reason: str
) -> None:
    """No grants, no such database, another one."""
    await owner.execute("drop role if exists stranger; create role stranger login")
    async with serving(primary, replica.url(*where)) as client:
        async with asyncio.timeout(30):
            while reason not in (await until_used(client, used=False))["reason"]:
                pass
        assert await unread(client)
        assert await reads(client, "left") == 3


async def test_a_primary_is_no_replica(primary: Cluster, owner: Owner) -> None:
    async with serving(primary, primary.url(user=ROLE)) as client:
        async with asyncio.timeout(30):
            while "no replica" not in (await until_used(client, used=False))["reason"]:
                pass
        assert await unread(client)


async def test_a_replica_that_has_all_is_not_behind_where_a_file_is_full(
    replica: Cluster, owner: Owner, replay: Owner
) -> None:
    """After a switch of the WAL file the primary says where the next record begins: further."""
    queries = load_queries()
    inserted = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    seen = None
    while seen is None:  # again where somebody has written in between
        await owner.execute("create table nothing (); drop table nothing")
        await owner.execute("select pg_switch_wal()")
        before = await owner.fetchval(inserted)
        (told,) = await owner.fetch(queries.position)
        if before % 2**24 == 40 and before == await owner.fetchval(inserted):
            seen = told["position"]
    await until_replayed(owner, replay)
    (told,) = await replay.fetch(queries.replayed)
    assert seen % 2**24 == 0
    assert told["replayed"] >= seen


async def test_an_answer_that_ends_its_connection_has_the_moment_too(
    primary: Cluster, replica: Cluster
) -> None:
    """It is one that aiohttp composes."""
    async with serving(primary, replica.url(user=ROLE), CORS_ORIGINS="https://x.example") as client:
        for more in ({}, {"Connection": "close"}, {"Origin": "https://x.example"}):
            async with client.post(
                "/systemevent/read", json={"id": 1}, headers={**bearer(), **more}
            ) as answer:
                assert int(answer.headers[HEADER])
                if "Origin" in more:
                    assert HEADER in answer.headers["Access-Control-Expose-Headers"].split(",")


# As processes


def environ(primary: Cluster, read_url: str) -> dict[str, str]:
    """What such a service is given."""
    return {
        "DATABASE_URL": primary.url(user=ROLE),
        "DATABASE_READ_URL": read_url,
        "AUTH_SECRET": SECRET,
        "LOGGING_LEVEL": "info",
    }


async def test_workers_know_of_each_others_marks(
    primary: Cluster, replica: Cluster, replay: Owner
) -> None:
    """Each request on a connection of its own, by a caller who sends nothing along."""
    given = environ(primary, replica.url(user=ROLE))
    async with run("serve", "--workers", "2", cwd=ROOT, environ=given) as process:
        for _ in range(2):
            await process.says("replica used")
        await replay.execute("select pg_wal_replay_pause()")
        await toggle(process, 20)


async def toggle(process: Process, times: int) -> None:
    """Mark and unmark as alice, and look each time."""
    for number in range(times):
        method = ("POST", "DELETE")[number % 2]
        url = f"{process.base}/systemevent"
        async with aiohttp.request(
            method, f"{url}/read", json={"id": 3}, headers=bearer()
        ) as answer:
            assert answer.status == 200
        async with aiohttp.request(
            "POST", url, json={"take": 100, "showUnread": True}, headers=bearer()
        ) as answer:
            listed = (await answer.json())["events"]
        assert (3 in {event["id"] for event in listed}) == bool(number % 2)


async def test_a_reload_takes_a_replica_and_lets_it_go(
    primary: Cluster, replica: Cluster, folder: Path
) -> None:
    """One that cannot be reached stops no reload; a URL that is none does, and is named."""
    given = environ(primary, "")
    del given["DATABASE_READ_URL"]

    async def configured(read_url: str, said: str) -> None:
        (folder / "config.toml").write_text(f'[database]\nread_url = "{read_url}"\n')
        process.process.send_signal(signal.SIGHUP)
        await process.says(said)

    async with run("serve", cwd=folder, environ=given) as process:
        await process.says('"ready"')
        await configured("postgresql:///?port=x", "not reloaded: database.read_url: port")
        await configured("postgresql://127.0.0.1:1/x", "reloaded")
        await process.says("replica left: 127.0.0.1:1")
        await configured(replica.url(user=ROLE), "reloaded")
        await process.says("replica used")
        await configured("", "reloaded")
        assert await process.get("/ready") == 200


# Faults

CALLERS = 6


def frozen(replica: Cluster) -> Iterator[None]:
    replica.freeze()
    yield
    replica.thaw()


def killed(replica: Cluster) -> Iterator[None]:
    replica.kill()
    yield
    replica.start()


def disconnected(replica: Cluster) -> Iterator[None]:
    where = f"from pg_stat_activity where usename = '{ROLE}'"
    for _ in range(20):
        psql(replica.url(), f"select pg_terminate_backend(pid) {where}")
    yield


def paused(replica: Cluster) -> Iterator[None]:
    psql(replica.url(), "select pg_wal_replay_pause()")
    yield
    psql(replica.url(), "select pg_wal_replay_resume()")


def delayed(replica: Cluster) -> Iterator[None]:
    set_delay = "alter system set recovery_min_apply_delay = '{}'"
    psql(replica.url(), set_delay.format("1500ms"), "select pg_reload_conf()")
    yield
    psql(replica.url(), set_delay.format("0"), "select pg_reload_conf()")


def promoted(replica: Cluster) -> Iterator[None]:
    replica.run("pg_ctl", "-w", "-D", replica.data, "promote")
    yield


@pytest.mark.faults
@pytest.mark.late
@pytest.mark.parametrize("disturb", [frozen, killed, disconnected, paused, delayed, promoted])
async def test_whatever_happens_to_the_replica_nobody_notices(
    primary: Cluster,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    disturb: Callable[[Cluster], Iterator[None]],
) -> None:
    """Callers mark and unmark an event each, on two instances of two workers, and look each time.

    All is answered, none too late, and no mark is ever seen undone.
    """
    monkeypatch.setattr("tests.support.process.PATIENCE", 150)
    users = "insert into users values ($1, 'acme', $1, $1, 255) on conflict do nothing"
    for number in range(CALLERS):
        await owner.execute(users, f"caller-{number}")
    with replica_of(primary) as replica:
        given = environ(primary, replica.url(user=ROLE)) | {
            "LIMITS_DEADLINE": "5",
            "DATABASE_STATEMENT_TIMEOUT": "1",
            "DATABASE_CONNECT_TIMEOUT": "1",
            "DATABASE_READ_LAG": "3",
            "LOGGING_LEVEL": "warning",
        }
        serve = ("serve", "--workers", "2")
        async with (
            run(*serve, cwd=ROOT, environ=given) as one,
            run(*serve, cwd=ROOT, environ=given) as other,
        ):
            bases = [one.base, other.base]
            for process in (one, other):
                assert await process.get("/ready") == 200
            await until_answered(one, other)
            rounds: Counter[int] = Counter()
            ending = asyncio.Event()
            calls = [
                asyncio.create_task(look_again(number, bases, rounds, ending))
                for number in range(CALLERS)
            ]
            await progress(rounds, calls, 5)
            for _ in await asyncio.to_thread(lambda: disturb(replica)):
                await asyncio.sleep(6)  # longer than the lag that is allowed, and a deadline
                await progress(rounds, calls, 5)
            if disturb is not promoted:
                await until_answered(one, other)
            await progress(rounds, calls, 5)
            ending.set()
            await asyncio.gather(*calls)


async def until_answered(*processes: Process) -> None:
    """Wait until the replica answers some reads of each."""
    async with asyncio.timeout(60):
        for process in processes:
            before = (await scrape(process.admin)).sum("replica_reads_total", outcome="answered")
            now = before
            while now < before + 2:
                async with aiohttp.request(
                    "POST", f"{process.base}/systemevent/count", headers=bearer("bob")
                ) as answer:
                    assert answer.status == 200
                found = await scrape(process.admin)
                now = found.sum("replica_reads_total", outcome="answered")


async def progress(rounds: Counter[int], calls: list["asyncio.Task[None]"], count: int) -> None:
    """Wait until each caller has gone round so often again; a caller that has failed says why."""
    wanted = {number: rounds[number] + count for number in range(CALLERS)}
    async with asyncio.timeout(90):
        while any(rounds[number] < least for number, least in wanted.items()):
            await asyncio.sleep(0.05)
            for call in calls:
                if call.done():
                    call.result()


async def look_again(
    number: int, bases: list[str], rounds: Counter[int], ending: asyncio.Event
) -> None:
    """Mark or unmark, and look; every other caller keeps to one instance, and sends no moment."""
    loop = asyncio.get_running_loop()
    event_id, headers = number + 1, bearer(f"caller-{number}")
    moment: dict[str, str] = {}
    connector = aiohttp.TCPConnector(force_close=True)  # so that both workers have some
    async with aiohttp.ClientSession(connector=connector) as session:
        for method in itertools.cycle(("POST", "DELETE")):
            if ending.is_set():
                return
            base = bases[0] if number % 2 else random.choice(bases)
            started = loop.time()
            async with session.request(
                method, f"{base}/systemevent/read", json={"id": event_id}, headers=headers
            ) as answer:
                assert answer.status == 200, await answer.text()
                if number % 2 == 0:
                    moment = {str(HEADER): answer.headers[HEADER]}
            # At once, and a little later, when the replica may be asked again.
            for pause in (0, random.uniform(0, 4) if rounds[number] % 5 == 0 else 0):
                await asyncio.sleep(pause)
                base = bases[0] if number % 2 else random.choice(bases)
                body, given = {"showUnread": True, "take": 100}, {**headers, **moment}
                started = loop.time()
                async with session.post(f"{base}/systemevent", json=body, headers=given) as answer:
                    assert answer.status == 200, await answer.text()
                    listed = {event["id"] for event in (await answer.json())["events"]}
                assert loop.time() - started < 7, "later than its deadline"
                assert (event_id in listed) == (method == "DELETE"), "a mark undone"
            rounds[number] += 1
