"""Two instances behind a proxy, restarted and reloaded one after the other: nobody notices.

The proxies run the files in deploy/. `make faults` runs these.
"""

import asyncio
import contextlib
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import ROLE, ROOT, SECRET, psql, serving_postgres
from tests.support.cluster import Cluster, free_port
from tests.support.load import EVENTS, Load, marking
from tests.support.process import Process, run

pytestmark = [pytest.mark.faults, pytest.mark.late]

ROUNDS = 5
DRAIN = "3"
PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    with serving_postgres(EVENTS, "vacuum analyze") as cluster:
        yield cluster


class Instance:
    """One of the two, which can be restarted on its ports."""

    def __init__(self, own: Cluster, folder: Path, workers: str) -> None:
        self._folder, self._workers = folder, workers
        self.port, self.admin = free_port(), free_port()
        self._environ = {
            "DATABASE_URL": own.url(user=ROLE),
            "AUTH_SECRET": SECRET,
            "SERVER_PORT": str(self.port),
            "ADMIN_PORT": str(self.admin),
            "SERVER_DRAIN": DRAIN,
            "LOGGING_LEVEL": "warning",
        }
        self._stack = contextlib.AsyncExitStack()
        self.process: Process

    async def start(self) -> None:
        self.process = await self._stack.enter_async_context(
            run("serve", "--workers", self._workers, cwd=self._folder, environ=self._environ)
        )
        while await self.process.get("/ready") != 200:
            assert self.process.process.returncode is None
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        assert await self.process.ended(signal.SIGTERM) == 0
        await self._stack.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def reload(self) -> None:
        self.process.process.send_signal(signal.SIGHUP)


@contextlib.asynccontextmanager
async def proxy(name: str, folder: Path, text: str) -> AsyncIterator[None]:
    """Run nginx or HAProxy with a configuration."""
    program = shutil.which(name, path=PATH)
    if program is None:
        pytest.skip(f"{name} is not installed")
    file = folder / f"{name}.conf"
    file.write_text(text)
    arguments = {
        "nginx": ("-p", str(folder), "-c", str(file), "-e", str(folder / "nginx.log")),
        "haproxy": ("-db", "-f", str(file)),
    }
    process = await asyncio.create_subprocess_exec(program, *arguments[name])
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def configuration(name: str, folder: Path, ports: dict[int, int]) -> str:
    """The file in deploy/, on other ports, as a whole configuration."""
    file = ROOT / "deploy" / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[name]
    text = re.sub(r"\b80\d\d\b", lambda found: str(ports[int(found[0])]), file.read_text())
    if name == "haproxy":
        return text
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in folders)
    return f"""
        daemon off; pid {folder}/nginx.pid; worker_processes 2; events {{}}
        http {{ access_log off; {temporary} {text} }}
    """


async def restarts(
    name: str,
    own: Cluster,
    folder: Path,
    change: Callable[[str], str] = str,
) -> Load:
    """Restart and reload both, round after round, under load through a proxy; the load."""
    async with contextlib.AsyncExitStack() as stack:
        instances = [Instance(own, folder, workers) for workers in ("1", "2")]
        for instance in instances:
            await instance.start()
            stack.push_async_callback(instance.stop)
        ports = dict(
            zip(
                (8080, 8081, 8090, 8091),
                (
                    *(instances[0].port, instances[0].admin),
                    *(instances[1].port, instances[1].admin),
                ),
                strict=True,
            )
        ) | {8000: free_port()}
        text = change(configuration(name, folder, ports))
        await stack.enter_async_context(proxy(name, folder, text))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        mark = marking(session, f"http://127.0.0.1:{ports[8000]}")
        while await mark(1) != 200:
            await asyncio.sleep(0.1)
        load = Load(mark, pause=0.005)
        async with load:
            for _ in range(ROUNDS):
                for instance in instances:
                    await instance.restart()
                    instance.reload()
                    await load.more()
        return load


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
async def test_rolling_restarts(name: str, own: Cluster, tmp_path: Path) -> None:
    """Each is restarted, and reloaded, five times under load, and no request fails."""
    load = await restarts(name, own, tmp_path)
    assert load.refused == []
    rows = psql(own.url(), "select event_id from system_event_read where user_id = 'alice'")
    assert load.acknowledged <= set(map(int, rows.split()))
