"""CPU time of one marking in the service alone: no socket, no database, no second process.

`python -m bench.request` prints microseconds a request. It leaves out what the kernel and asyncpg
cost, and is steady to a few per cent where a run over sockets is not: to see whether a change
helped, and with `python -m cProfile -s tottime -m bench.request`, where the time goes.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import jwt
import uvloop
from aiohttp import web

from bench.servers import SECRET
from service import config, logs
from service.app import create_runner
from service.database.connections import Connections

CONNECTIONS, CALLERS, ROUNDS = 64, 5000, 7
SETTINGS = {
    "SYSTEMEVENT_ADMIN_PORT": "0",
    "SYSTEMEVENT_AUTH_SECRET": SECRET,
    "SYSTEMEVENT_DATABASE_URL": "postgresql://nobody@/none?host=/nowhere",
}


class _Transport(asyncio.Transport):
    """A connection whose other end sends its next request when it has its answer."""

    def __init__(self, answered: list["_Transport"], protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self._answered = answered
        protocol.connection_made(self)

    def write(self, _: object) -> None:
        self._answered.append(self)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


async def _fetch(_: object, __: str, callers: Sequence[str], *___: object, seconds: float) -> Any:  # noqa: ARG001
    await asyncio.sleep(0)
    return [{"user_id": caller, "organization_id": "organization"} for caller in callers]


def _requests() -> list[bytes]:
    claims = {"exp": int(time.time()) + 3600}
    made = []
    for number in range(CALLERS):
        token = jwt.encode({"userId": f"user {number}", **claims}, SECRET, "HS256")
        body = f'{{"id":{random.randrange(1, 1000)}}}'
        made.append(
            "POST /systemevent/read HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
    return made


async def measure() -> float:
    """Return the CPU time of a request in microseconds, the median of some seconds."""
    settings = config.load(None, SETTINGS)
    Connections.fetch = _fetch  # type: ignore[method-assign, assignment]
    runner = create_runner(settings, lambda _: None)  # it has no database
    await runner.setup()
    connect = cast("web.Server", runner.server)
    requests, sent = _requests(), 0
    answered: list[_Transport] = []
    for _ in range(CONNECTIONS):
        answered.append(_Transport(answered, connect()))
    found = []
    for _ in range(ROUNDS):
        before, end, start = sent, time.monotonic() + 1, time.process_time()
        while time.monotonic() < end:
            waiting, answered[:] = answered[:], []
            for transport in waiting:
                transport.protocol.data_received(requests[sent % CALLERS])
                sent += 1
            await asyncio.sleep(0)
        found.append((time.process_time() - start) / (sent - before) * 1e6)
    return statistics.median(found[1:])  # in the first, tokens are verified


def main() -> None:
    """Print it."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)  # the request log
    logs.set_up(config.Logging())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        took = loop.run(measure())
    print(f"{took:.1f} us a request")


if __name__ == "__main__":
    main()
