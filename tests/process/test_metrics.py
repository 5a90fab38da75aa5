"""/metrics of several workers: right whichever is asked, and when one of them is replaced."""

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path

import aiohttp
import psutil
import pytest

from service.admin.families import FAMILIES, PREFIX
from tests.conftest import ROOT, SECRET, Sandbox
from tests.support.metrics import scrape
from tests.support.process import Process, run

MARKS = {"method": "POST", "route": "/systemevent/read", "status": "200"}
ASKED = re.compile(r"(systemevent_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)[=!]")


async def mark(process: Process, count: int) -> None:
    """Mark so often, each time on a connection of its own, so that each worker has some."""
    answers = await asyncio.gather(*(process.post(b'{"id":1}') for _ in range(count)))
    assert {status for status, _ in answers} == {200}


async def until_ready(process: Process, workers: int) -> None:
    """Wait until so many workers are there and serve."""
    for _ in range(workers):
        await process.says('"ready"')


async def until_counted(process: Process, count: int) -> None:
    """Wait until so many marks are counted, whichever worker is asked; never more, never fewer."""
    before = right = 0.0
    while right < 10:
        now = (await scrape(process.admin)).sum("requests_total", **MARKS)
        assert before <= now <= count
        before, right = now, right + (now == count)


def pids(process: Process) -> set[int]:
    """The workers."""
    return {child.pid for child in psutil.Process(process.process.pid).children()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
async def test_a_worker_is_replaced(database: Sandbox, tmp_path: Path, how: signal.Signals) -> None:
    """No counter goes back, and no gauge of the one that is gone stays."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": database.url}
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=environ) as process:
        await until_ready(process, 2)
        before, gone = await scrape(process.admin), pids(process)
        await mark(process, 20)
        if how == signal.SIGKILL:  # else it takes with it what it has counted in the last second
            await until_counted(process, 20)
        if how == signal.SIGHUP:
            process.process.send_signal(how)
        else:
            gone = {min(gone)}
            os.kill(min(gone), how)
        started = asyncio.create_task(until_ready(process, len(gone)))
        counted = 0.0
        while not started.done() or pids(process) & gone or len(pids(process)) > 2:
            # A connection may come just as a worker goes.
            with contextlib.suppress(aiohttp.ClientConnectionError):
                now = (await scrape(process.admin)).sum("requests_total", **MARKS)
                assert counted <= now <= 20
                counted = now
        assert counted == 20
        await started
        for name in ("workers", "database_connections_max"):
            while (await scrape(process.admin)).sum(name) != before.sum(name):
                await asyncio.sleep(0)
        await mark(process, 20)
        await until_counted(process, 40)
        assert (await scrape(process.admin)).sum("statement_requests_sum", kind="read") == 40


async def test_gauges_of_all_workers(database: Sandbox, tmp_path: Path) -> None:
    """They are of all workers, whichever is asked."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": database.url}
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=environ) as process:
        await until_ready(process, 2)
        for held in pids(process):  # so that each has verified a token
            os.kill(held, signal.SIGSTOP)
            assert (await process.post())[0] == 200
            os.kill(held, signal.SIGCONT)
        while (await scrape(process.admin)).sum("verified_tokens") != 2:
            await asyncio.sleep(0)


async def test_the_operators_files_name_what_there_is(database: Sandbox, tmp_path: Path) -> None:
    """Alerts and dashboard ask for metrics and labels that are shown; the manual has all."""
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": database.url}
    async with run("serve", "--workers", "2", cwd=tmp_path, environ=environ) as process:
        await until_ready(process, 2)
        shown = await scrape(process.admin)
    types = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in shown.families
    }
    labels_of = {
        name + suffix: {*FAMILIES[name.removeprefix(PREFIX)].labels, "le", "job", "instance"}
        for name, kind in types.items()
        for suffix in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))
    }
    for path in ("deploy/alerts.yml", "deploy/grafana.json"):
        asked = ASKED.findall((ROOT / path).read_text().replace('\\"', '"'))
        assert len(asked) > 10
        for name, labels in asked:
            assert set(LABEL.findall(labels)) <= labels_of[name], name
    named = set(
        re.findall(r"^\| `(systemevent_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    assert named == types.keys() == {PREFIX + name for name in FAMILIES}
