"""The traffic of the soak: good requests, bad ones, and such as break off in the middle."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import jwt

from bench.servers import SECRET

PAUSE = 0.02  # seconds that a client rests after a request, on average
BUSY = 503
READ, LIST, COUNT = "/systemevent/read", "/systemevent", "/systemevent/count"


@dataclass(frozen=True)
class Request:
    """What is sent, and the status that it has to be answered with."""

    name: str
    status: int
    token: str
    body: bytes
    path: str = READ
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def _token(user: str, secret: str = SECRET, seconds: int = 86_400) -> str:
    return jwt.encode({"userId": user, "exp": int(time.time()) + seconds}, secret, "HS256")


def _good(token: str, events: int) -> Request:
    """A request as the bell sends it."""
    one = json.dumps({"id": random.randint(1, events)}).encode()
    ten = json.dumps({"ids": random.sample(range(1, events + 1), 10)}).encode()
    kinds = (
        Request("mark", 200, token, one),
        Request("mark ten", 200, token, ten),
        Request("unmark", 200, token, ten, method="DELETE"),
        Request("list", 200, token, b"{}", LIST),
        Request("count", 200, token, b"{}", COUNT),
    )
    return random.choices(kinds, (6, 2, 2, 1, 1))[0]


def _bad(token: str) -> Request:
    """A request that is refused; each token that proves nothing is a new one."""
    anybody, body = random.randbytes(8).hex(), b'{"id": 1}'
    return random.choice(
        (
            Request("no token", 401, "", body),
            Request(
                "forged token", 401, _token(anybody, "another secret of 32 bytes or more"), body
            ),
            Request("expired token", 401, _token(anybody, seconds=-60), body),
            Request("unknown user", 401, _token(anybody), body),
            Request("no JSON", 400, token, random.randbytes(100)),
            Request("no id", 400, token, b'{"ids": ["1", null, -1]}'),
            Request("no time", 400, token, b'{"from_timestamp": "noon"}', LIST),
            Request("odd ids", 200, token, b'{"ids": [' + b"5.0, " * 20_000 + b"1e0]}"),
            Request("too large", 413, token, b" " * 2**20),
            Request("compressed", 415, token, body, headers={"Content-Encoding": "gzip"}),
            Request("no such path", 404, token, body, f"/{anybody}"),
            Request("no such method", 405, token, body, method="PUT"),
        )
    )


def _broken(token: str) -> tuple[str, bytes]:
    """What a client sends before it hangs up, and a name for it."""
    head = f"POST {READ} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {token}\r\n".encode()
    mark = head + b'Content-Length: 9\r\n\r\n{"id": 1}'
    many = head.replace(READ.encode(), LIST.encode()) + b"Content-Length: 2\r\n\r\n{}"
    return random.choice(
        (
            ("nothing sent", b""),
            ("half a head", head[: random.randrange(1, len(head))]),
            ("half a body", head + b'Content-Length: 100\r\n\r\n{"ids": [1, 2'),
            ("half a chunk", head + b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"id'),
            ("answer not read", mark),
            ("twenty answers not read", many * 20),
            ("trailers", head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: 1\r\n\r\n"),
            ("an upgrade", head + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + mark),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500)),
        )
    )


@dataclass
class Traffic:
    """Clients that go on until they are cancelled; what is answered is counted."""

    port: int
    users: Sequence[str]
    events: int  # each organization has the events 1 to this one
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)  # (name, status)
    broken: Counter[str] = field(default_factory=Counter)  # broken off, by name
    wrong: Counter[str] = field(default_factory=Counter)  # other answers than there should be

    @property
    def refused(self) -> int:
        """How many answers were 503, as a machine that is busy with other things may cause."""
        return sum(count for (_, status), count in self.answers.items() if status == BUSY)

    async def run(self, good: int, bad: int, broken: int) -> None:
        """Let so many clients of each kind go on."""
        tokens = [_token(user) for user in self.users]
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{self.port}", connector=aiohttp.TCPConnector(limit=0)
        ) as session:

            async def send_good() -> None:
                await self._send(session, _good(random.choice(tokens), self.events))

            async def send_bad() -> None:
                await self._send(session, _bad(random.choice(tokens)))

            async def break_off() -> None:
                await self._break_off(*_broken(random.choice(tokens)))

            async with asyncio.TaskGroup() as group:
                for kind, clients in ((send_good, good), (send_bad, bad), (break_off, broken)):
                    for _ in range(clients):
                        group.create_task(_go_on(kind))

    async def _send(self, session: aiohttp.ClientSession, request: Request) -> None:
        headers = dict(request.headers)
        if request.token:
            headers["Authorization"] = f"Bearer {request.token}"
        status = 0  # the connection broke
        with contextlib.suppress(aiohttp.ClientError):
            async with session.request(
                request.method, request.path, data=request.body, headers=headers
            ) as answer:
                await answer.read()
                status = answer.status
        self.answers[request.name, status] += 1
        if status not in (request.status, BUSY):
            self.wrong[f"{request.name}: {status} in place of {request.status}"] += 1

    async def _break_off(self, name: str, sent: bytes) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(sent)
            await asyncio.sleep(random.choice((0, 0.05, 0.5)))
            random.choice((writer.close, writer.transport.abort))()
        self.broken[name] += 1


async def _go_on(send: Callable[[], Awaitable[None]]) -> None:
    while True:
        await send()
        await asyncio.sleep(random.uniform(0, 2 * PAUSE))
