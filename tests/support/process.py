"""The service as a process of its own, as an operator runs it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import aiohttp

from tests.conftest import ROOT, bearer, through_a_pooler
from tests.support.cluster import free_port

Answer: TypeAlias = tuple[int, Any]  # status and body

PATIENCE = 60.0  # seconds, after which a test fails; none asserts how long anything takes


@dataclass
class Process:
    """A running command. A traceback that is not part of a log line is a failure."""

    process: asyncio.subprocess.Process
    port: int
    admin: str
    errors: list[str] = field(default_factory=list)  # lines of stderr read so far
    _passed_over: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        """Address of the public port."""
        return f"http://127.0.0.1:{self.port}"

    async def says(self, text: str, *, instead_of: str | None = None) -> str:
        """Read stderr up to a line that holds `text`, and return it; each line is found once."""
        assert self.process.stderr is not None
        for line in self._passed_over:
            if text in line:
                self._passed_over.remove(line)
                return line
        while line := (await self.process.stderr.readline()).decode():
            self.errors.append(line)
            if text in line:
                return line
            assert instead_of is None or instead_of not in line
            self._passed_over.append(line)
        raise AssertionError(f"ended without saying {text!r}: {''.join(self.errors)}")

    async def prints(self, text: str) -> str:
        """Read stdout up to the next line that holds `text`, and return all of it."""
        assert self.process.stdout is not None
        read = ""
        while line := (await self.process.stdout.readline()).decode():
            read += line
            if text in line:
                return read
        raise AssertionError(f"ended without printing {text!r}: {read}")

    async def ended(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and wait for the end; the status."""
        if number is not None:
            self.process.send_signal(number)
        _, errors = await self.process.communicate()
        self.errors += errors.decode().splitlines(keepends=True)
        assert not any(line.startswith("Traceback") for line in self.errors), self.errors
        assert self.process.returncode is not None
        return self.process.returncode

    async def post(self, body: bytes = b'{"id":1}', **headers: str) -> Answer:
        """Mark an event, on a connection of its own: status and body."""
        async with aiohttp.request(
            "POST", f"{self.base}/systemevent/read", data=body, headers=bearer() | headers
        ) as answer:
            return answer.status, await answer.json()

    async def ready(self, count: int) -> list[int]:
        """Wait for that many more workers, and return their pids."""
        lines = [await self.says("Booting worker with pid: ") for _ in range(count)]
        for _ in lines:
            await self.says('"ready"')
        return [int(re.findall(r"pid: (\d+)", line)[0]) for line in lines]

    async def get(self, path: str) -> int:
        """Ask the operator's port, again while it is not open yet; the status."""
        while True:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                async with aiohttp.request("GET", self.admin + path) as answer:
                    return answer.status


@contextlib.asynccontextmanager
async def run(
    *arguments: str,
    cwd: Path,
    python_path: Path = ROOT,
    program: tuple[str, ...] = (sys.executable, "-m", "service"),
    environ: Mapping[str, str],
    usual: Mapping[str, str] = MappingProxyType({"SERVER_DRAIN": "0"}),  # nobody balances here
    stdin: int | None = None,
) -> AsyncIterator[Process]:
    """Start a command, with free ports; `environ` without the prefix. Killed in the end."""
    free = {"SERVER_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
    ports = {**usual, **free, **environ}
    ours = {f"SYSTEMEVENT_{name}": value for name, value in {**through_a_pooler(), **ports}.items()}
    others = {name: value for name, value in os.environ.items() if name[:12] != "SYSTEMEVENT_"}
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        cwd=cwd,
        env={**others, "PYTHONPATH": str(python_path), **ours},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield Process(
                process, int(ports["SERVER_PORT"]), f"http://127.0.0.1:{ports['ADMIN_PORT']}"
            )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()  # wait() waits for ever where much is unread
