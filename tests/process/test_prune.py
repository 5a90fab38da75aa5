"""`prune` as cron or an operator runs it: what it says, being stopped, and marking beside it."""

import asyncio
import os
import pty
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.__main__ import main
from tests.conftest import ROLE, ROOT, SECRET, Sandbox, bearer, psql, serving_postgres
from tests.support.cluster import Cluster
from tests.support.process import run

# Directly, as the README says, and not through a pooler
pytestmark = pytest.mark.session

GONE = """
    insert into system_event_read (organization_id, user_id, event_id)
    select 'acme', 'alice', e from generate_series(1, 40) e
"""
SLOW = """
    create function slow() returns trigger language plpgsql as $$
      begin perform pg_sleep(0.03); return old; end $$;
    create trigger slow before delete on system_event_read
      for each row execute function slow();
"""
LINE = "read rows: 40 looked at; found 20 whose event is gone; {}\n"


def prune(arguments: str = "") -> list[str]:
    """The command's arguments."""
    return ["prune", *arguments.split()]


@pytest.fixture
def command(
    database: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], int]:
    """The command in this process, with nothing configured but the database's URL; its status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.logs.set_up", lambda _: None)
    monkeypatch.setenv("SYSTEMEVENT_DATABASE_URL", database.url)
    return lambda arguments: main(prune(arguments))


def test_from_cron_it_prints_a_line(
    database: Sandbox, command: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing else; what a dry run announces the next one does, and then nothing is left."""
    psql(database.owner_url, GONE)
    nothing = "read rows: 20 looked at; found none to delete; deleted 0\n"
    for arguments, line in (
        ("--dry-run", LINE.format("dry run, deleted none")),
        ("", LINE.format("deleted 20")),
        ("", nothing),
        ("--older-than 1", nothing),
        ("--user alice --dry-run", "read rows; found 20 of the user; dry run, deleted none\n"),
        ("--user alice", "read rows; found 20 of the user; deleted 20\n"),
    ):
        assert command(arguments) == 0
        assert capsys.readouterr() == (line, "")


@pytest.mark.parametrize(
    "arguments", ["--older-than 0", "--older-than x", "--user a --older-than 1"]
)
def test_arguments_that_make_no_sense(arguments: str, command: Callable[[str], int]) -> None:
    """Nothing is done; the status is argparse's."""
    with pytest.raises(SystemExit, match="2"):
        command(arguments)


async def test_on_a_terminal_it_shows_how_far_it_is(database: Sandbox, tmp_path: Path) -> None:
    """A bar, once there are statistics; it goes before the last line."""
    psql(database.owner_url, GONE, "analyze", SLOW)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *prune()),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SYSTEMEVENT_DATABASE_URL": database.url},
        stdout=theirs,
    )
    os.close(theirs)
    assert await process.wait() == 0
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\r[########################] 100%  40 looked at, 20 found, " in seen
    assert seen.replace("\r\n", "\n").endswith("\r\x1b[K" + LINE.format("deleted 20"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopped_and_repeated(
    database: Sandbox, tmp_path: Path, number: signal.Signals
) -> None:
    """What is done stays, the status is not that of success, and a repeat does the rest."""
    psql(database.owner_url, GONE, SLOW)
    environ = {"DATABASE_URL": database.url}
    async with run(*prune(), cwd=tmp_path, environ=environ) as process:
        while len(await database.read_rows()) == 40:
            assert process.process.returncode is None
        assert await process.ended(number) == 128 + number
        assert process.errors == []
    left = len(await database.read_rows())
    assert 20 < left < 40
    async with run(*prune(), cwd=tmp_path, environ=environ) as process:
        await process.prints(f"found {left - 20} whose event is gone; deleted {left - 20}\n")
        assert await process.ended() == 0
    assert len(await database.read_rows()) == 20


# Beside the service

USERS = [f"u{number}" for number in range(30)]
EVENTS = 2000
CROWD = f"""
    insert into users (id, organization_id, name, email)
    select u, 'crowd', 'U', 'u@crowd.example' from unnest(array{USERS}) u;
    insert into system_event_log
      (organization_id, id, "timestamp", context, event, context_id, user_id)
    select 'crowd', id, now() - interval '1 year', 0, 0, 'thing', 'u0'
    from generate_series(1, {EVENTS}) id
"""
ALL_READ = f"""
    insert into system_event_read (organization_id, user_id, event_id)
    select 'crowd', u, id from unnest(array{USERS}) u, generate_series(1, {EVENTS}) id
    on conflict do nothing
"""
LOCK = """
    select from system_event_read
    where organization_id = 'crowd' and user_id = 'u15' and event_id = 1000 for update
"""


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with serving_postgres(CROWD) as cluster:
        yield cluster


@pytest.fixture
async def owner(own: Cluster) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(own.url())
    yield connection
    await connection.close()


@pytest.mark.faults
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_marking_does_not_feel_it(
    own: Cluster, owner: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path, method: str
) -> None:
    """Though it removes what is being marked, and one of its rows is locked all the time."""
    environ = {"DATABASE_URL": own.url(user=ROLE), "AUTH_SECRET": SECRET}
    impatient = {"LIMITS_DEADLINE": "2", "LIMITS_BODY_DEADLINE": "2", "LOGGING_LEVEL": "error"}
    await owner.execute(ALL_READ)
    callers = [user for user in USERS if user != "u15"]
    statuses = {user: Counter[int]() for user in callers}
    async with (
        owner.transaction(),
        run("serve", cwd=tmp_path, environ=environ | impatient) as service,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await owner.execute(LOCK)
        while await service.get("/ready") != 200:
            pass
        async with run(*prune("--older-than 90"), cwd=tmp_path, environ=environ) as process:

            async def mark(user: str) -> None:
                headers = bearer(user)
                while not pruning.done():
                    async with session.request(
                        method,
                        service.base + "/systemevent/read",
                        json={"id": random.randint(1, EVENTS)},
                        headers=headers,
                    ) as answer:
                        statuses[user][answer.status] += 1

            line = asyncio.create_task(process.prints("read rows: "))
            pruning = asyncio.create_task(process.process.wait())
            await asyncio.gather(*map(mark, callers))
            assert await pruning == 1
            assert "left 1 that others hold locked, run it again" in await line
    for counts in statuses.values():
        assert set(counts) == {200}
        assert counts.total() >= 5
