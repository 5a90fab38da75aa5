"""Bytes on the wire that no well-behaved client sends: always one answer, in the one shape."""

import asyncio
import contextlib
import gzip
import json
import math
import random
import re
import resource
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from aiohttp import StreamReader, web
from multidict import CIMultiDict

from service import config
from service.observing import Observers
from service.web import connection as connection_module
from service.web.cors import Cors
from service.web.intake import PORTION, portion
from service.web.middlewares import LARGE_EACH
from service.web.protocol import Runner
from service.web.terms import Terms
from tests.conftest import Sandbox, Service, Start, bearer
from tests.support.cluster import Cluster
from tests.support.process import PATIENCE
from tests.support.shared import Client, Shared, clean, serve, server_of

BODY = b'{"id": 1}'
CHUNKED = b"9\r\n" + BODY + b"\r\n0\r\n\r\n"
AUTHORIZATION = f"Authorization: {bearer()['Authorization']}".encode()
POST = b"POST /systemevent/read HTTP/1.1"
TE = b"Transfer-Encoding: chunked"
MARKED = {("acme", "alice", 1)}


@dataclass
class Answer:
    """An answer, as it was received."""

    version: str
    status: int
    headers: CIMultiDict[str]
    body: bytes


class Connection:
    """A connection that sends what it is told, and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk over these streams."""
        self._reader = reader
        self._writer = writer

    async def send(self, *data: bytes) -> None:
        """Send bytes."""
        self._writer.write(b"".join(data))  # writelines() fills memory without end on Python 3.12
        await self._writer.drain()

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection."""
        if reset:
            now = struct.pack("ii", 1, 0)
            made: socket.socket = self._writer.get_extra_info("socket")
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self._writer.close()

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Read one answer, and check its shape where it is no success."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        version, status, _ = head[0].split(" ", 2)
        headers = CIMultiDict(re.findall(r"^(.+?): (.*)$", "\n".join(head[1:]), re.MULTILINE))
        answer = Answer(version, int(status), headers, b"")
        if answer.status == 100:
            return answer
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Server"] == "systemevent-read"
        if not to_head:
            answer.body = await self._reader.readexactly(int(headers["Content-Length"]))
            assert headers["Content-Type"].startswith("application/json")
            if answer.status == 200:
                assert answer.body == b'{"success":true}'
            else:
                assert list(json.loads(answer.body)) == ["error"]
        return answer

    async def rest(self) -> bytes:
        """Everything until the service closes the connection."""
        return await self._reader.read()


@contextlib.asynccontextmanager
async def connect(client: Client) -> AsyncIterator[Connection]:
    """Connect; whatever happens ends within ten seconds."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()


def request(*lines: bytes, body: bytes = BODY, line: bytes = POST, token: bool = True) -> bytes:
    """A request; with its Content-Length, unless a line is about the length."""
    fields = [line, b"Host: x", *([AUTHORIZATION] if token else []), *lines]
    if not any(field.lower().startswith((b"content-length", b"transfer-encod")) for field in lines):
        fields.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(fields) + b"\r\n\r\n" + body


def preflight(
    origin: bytes = b"https://app.example", method: bytes = b"POST", headers: bytes = b"X-A"
) -> bytes:
    """What a browser asks before it sends a request."""
    lines = [
        b"OPTIONS /systemevent/read HTTP/1.1",
        b"Host: x",
        b"Origin: " + origin,
        b"Access-Control-Request-Method: " + method,
        b"Access-Control-Request-Headers: " + headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[Shared]:
    """A service with one allowed origin."""
    async with serve(cluster, CORS_ORIGINS="https://app.example") as shared:
        yield shared


database, client = clean()


# Refused below the application. Where such a request ends is not known, so the connection ends.
MALFORMED = {
    "words": b"hello, is anybody there?\r\n\r\n",
    "NUL": b"\0" * 100 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": request(line=b"POST /systemevent/read HTTP/3.0"),
    "method not ASCII": request(line=b"P\xd6ST /systemevent/read HTTP/1.1"),
    "method unknown": request(line=b"MARK /systemevent/read HTTP/1.1"),
    "path not ASCII": request(line=b"POST /systemevent/r\xe4d HTTP/1.1"),
    "query not ASCII": request(line=b"POST /systemevent/read?\xe4 HTTP/1.1"),
    "path without slash": request(line=b"POST systemevent/read HTTP/1.1"),
    "host broken": request(line=b"POST http://[x/systemevent/read HTTP/1.1"),
    "too many headers": request(*(b"X-%d: x" % n for n in range(3000))),
    "header without colon": request(b"X-A"),
    "header folded": request(b"X-A: x\r\n y"),
    "header with NUL": request(b"X-A: x\0y"),
    "header with CR": request(b"X-A: x\ry"),
    "space before colon": request(b"Transfer-Encoding : chunked", body=CHUNKED),
    "bare LF": request().replace(b"\r\n", b"\n"),
    "no host": b"POST /systemevent/read HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    **{
        f"length {value.decode('latin1')}": request(b"Content-Length: " + value)
        for value in (
            b"abc",
            b"-9",
            b"+9",
            b"0x9",
            b"9, 9",
            b"9.0",
            b"9" * 30,
            b"\xef\xbc\x99",
            b"",
        )
    },
    "two lengths": request(b"Content-Length: 9", b"Content-Length: 8"),
    "length twice": request(b"Content-Length: 9", b"Content-Length: 9"),
    "chunked and length": request(TE, b"Content-Length: 9", body=CHUNKED),
    "length and chunked": request(b"Content-Length: 9", TE, body=CHUNKED),
    "chunked twice": request(TE, TE, body=CHUNKED),
    "chunked, chunked": request(TE + b", chunked", body=CHUNKED),
    "chunked, identity": request(TE + b", identity", body=CHUNKED),
    "chunked and identity": request(TE, b"Transfer-Encoding: identity", body=CHUNKED),
    "xchunked": request(b"Transfer-Encoding: xchunked", body=CHUNKED),
    "gzip alone": request(b"Transfer-Encoding: gzip"),
    "identity alone": request(b"Transfer-Encoding: identity"),
    **{
        f"chunk size {size.decode()}": request(TE, body=CHUNKED.replace(b"9", size, 1))
        for size in (b"zz", b"-9", b"0x9", b"8", b"a", b"f" * 17, b"")
    },
    "trailer Content-Length": request(TE, body=CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n"),
    "chunk with bare LF": request(TE, body=CHUNKED.replace(b"\r\n", b"\n")),
}


TOO_LONG = {
    "line": request(line=b"POST /" + b"x" * 70_000 + b" HTTP/1.1"),
    "header": request(b"X-A: " + b"x" * 70_000),
    "token": request(b"Authorization: Bearer " + b"x" * 9000, token=False),
    "header name": request(b"X" * 70_000 + b": x"),
    "header without end": POST + b"\r\nX-A: " + b"x" * 70_000,
}


@pytest.mark.parametrize("sent", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_header_that_is_too_long_is_told_so(client: Client, sent: bytes) -> None:
    """Not malformed, but more than is configured: 431 (RFC 6585, section 5), and how much is."""
    async with connect(client) as connection:
        await connection.send(sent)
        answer = await connection.answer()
        assert answer.status == 431
        assert b"at most 8190 bytes" in answer.body
        assert await connection.rest() == b""


async def test_the_size_of_a_header_is_configurable(start: Start) -> None:
    """A platform whose tokens are large sets it, and is told where it ends."""
    client = await start(SERVER_MAX_HEADER_SIZE="20000")
    for size, status in ((9000, 200), (30_000, 431)):
        headers = bearer(roles="x" * size)
        answer = await client.post("/systemevent/read", json={"id": 1}, headers=headers)
        assert answer.status == status


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_not_http_is_refused(client: Client, database: Sandbox, sent: bytes) -> None:
    """One 400, then the connection is closed, and nothing is marked."""
    async with connect(client) as connection:
        await connection.send(sent)
        assert (await connection.answer()).status == 400
        assert await connection.rest() == b""
    assert await database.read_rows() == set()


@pytest.mark.parametrize(
    "sent",
    [
        request(b"Origin: https://app.example", b"X-A: " + b"x" * 9000),
        request(b"X-A", b"origin:https://app.example "),
        request() + request(b"Origin: https://app.example", b"Content-Length: x"),
    ],
)
async def test_a_page_reads_that_its_request_is_not_http(client: Client, sent: bytes) -> None:
    """A browser can send a header that is too long; only pages that may call read the answer."""
    for origin, allowed in ((b"app", "https://app.example"), (b"evil", None)):
        async with connect(client) as connection:
            await connection.send(sent.replace(b"https://app", b"https://" + origin))
            while (answer := await connection.answer()).status == 200:
                pass
            assert answer.status == (431 if b"xxx" in sent else 400)
            assert answer.headers.getall("Access-Control-Allow-Origin", [None]) == [allowed]
            assert answer.headers["Vary"] == "Origin"
            assert answer.headers["X-Request-ID"]


ODD = {
    "plain": (request(), 200),
    "chunked": (request(TE, body=CHUNKED), 200),
    "chunked, in other case": (request(b"transfer-encoding: CHUNKED", body=CHUNKED), 200),
    "chunk extension and trailer": (
        request(TE, body=b"9;a=b\r\n" + BODY + b"\r\n0\r\nX-Trailer: x\r\n\r\n"),
        200,
    ),
    "absolute form": (request(line=b"POST http://x/systemevent/read HTTP/1.1"), 200),
    "Expect": (request(b"Expect: 100-continue"), 100),
    "Upgrade to h2c": (request(b"Connection: Upgrade", b"Upgrade: h2c"), 200),
    "Upgrade to websocket": (request(b"Connection: Upgrade", b"Upgrade: websocket"), 200),
    "X-Request-ID not ASCII": (request(b"X-Request-ID: \xe4\xff"), 200),
    "two X-Request-ID": (request(b"X-Request-ID: a", b"X-Request-ID: b"), 200),
    "Origin not ASCII": (request(b"Origin: https://\xe4.example"), 200),
    "Cookie not ASCII": (request(b"Cookie: \xe4=\xff;;="), 200),
    "Content-Type not ASCII": (request(b"Content-Type: \xe4; charset=\xff"), 200),
    "multipart": (request(b"Content-Type: multipart/form-data"), 200),
    "ranges and conditions": (request(b"Range: bytes=-", b"If-Match: *"), 200),
    "two Authorization": (request(AUTHORIZATION), 401),
    "Authorization not ASCII": (request(b"Authorization: Bearer \xe4\xff", token=False), 401),
    "scheme not ASCII": (request(b"Authorization: B\xe4rer x", token=False), 401),
    "token of 5 KB": (request(b"Authorization: Bearer " + b"x" * 5000, token=False), 401),
    "no token, Expect": (request(b"Expect: 100-continue", token=False), 100),
    "no length": (b"\r\n".join([POST, b"Host: x", AUTHORIZATION, b"", b""]), 400),
    "not gzip at all, chunked": (request(b"Transfer-Encoding: gzip, chunked", body=CHUNKED), 200),
    "compressed in transfer": (
        request(
            b"Transfer-Encoding: gzip, chunked",
            body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed := gzip.compress(BODY)), packed),
        ),
        400,
    ),
    "preflight, Origin not ASCII": (preflight(origin=b"https://\xe4"), 400),
    "preflight, method not ASCII": (preflight(method=b"P\xd6ST"), 400),
    "preflight, headers not ASCII": (preflight(headers=b"\xe4"), 400),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "path with escapes": (request(line=b"POST /systemevent/r%e4d%zz%00 HTTP/1.1"), 404),
    "path with dots": (request(line=b"POST /x/../systemevent/read HTTP/1.1"), 404),
    "path with two slashes": (request(line=b"POST //systemevent/read HTTP/1.1"), 404),
    "compressed, no such path": (request(b"Content-Encoding: gzip", line=b"POST /x HTTP/1.1"), 404),
    "GET with a body": (request(line=b"GET /systemevent/read HTTP/1.1"), 405),
    "a length beyond all": (request(b"Content-Length: 999999999999999999"), 413),
    "two Content-Encoding": (request(b"Content-Encoding: x", b"Content-Encoding: gzip"), 415),
    "empty Content-Encoding": (request(b"Content-Encoding:"), 415),
    **{
        f"unknown Expect, {line.decode()}": (request(b"Expect: x", line=line + b" HTTP/1.1"), 417)
        for line in (
            b"POST /systemevent/read",
            b"DELETE /systemevent/read",
            b"POST /systemevent",
            b"PUT /systemevent/read",
            b"POST /x",
        )
    },
    "unknown Expect, no token": (request(b"Expect: x", token=False), 417),
}


@pytest.mark.parametrize(("sent", "status"), ODD.values(), ids=ODD)
async def test_odd_requests_are_answered(
    client: Client, database: Sandbox, sent: bytes, status: int
) -> None:
    """The answer is the one of the contract, and only a 200 marks."""
    async with connect(client) as connection:
        await connection.send(sent)
        answer = await connection.answer()
        assert answer.status == status
        if status == 100:
            answer = await connection.answer()
            assert answer.status == 200 if AUTHORIZATION in sent else 401
    assert await database.read_rows() == (MARKED if answer.status == 200 else set())


async def test_a_request_id_that_is_not_sane_is_replaced(client: Client) -> None:
    """Bytes that are not ASCII are not echoed."""
    async with connect(client) as connection:
        await connection.send(request(b"X-Request-ID: \xe4"), request(b"X-Request-ID: sane"))
        assert (await connection.answer()).headers["X-Request-ID"].isascii()
        assert (await connection.answer()).headers["X-Request-ID"] == "sane"


async def test_a_request_hidden_in_a_body_is_not_served(client: Client, database: Sandbox) -> None:
    """Where Content-Length and Transfer-Encoding disagree, neither is believed."""
    hidden = request()
    bodies = (b"0\r\n\r\n" + hidden, b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden))
    for body in bodies:
        length = b"Content-Length: %d" % len(body)
        for lines in ((length, TE), (TE, length)):
            async with connect(client) as connection:
                await connection.send(request(*lines, body=body))
                assert (await connection.answer()).status == 400
                assert await connection.rest() == b""
    assert await database.read_rows() == set()


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """Each gets its own answer, whatever the one before got; HEAD has no body."""
    lines = [
        (POST, 200),
        (b"PUT /systemevent/read HTTP/1.1", 405),
        (b"HEAD /systemevent/read HTTP/1.1", 405),
        (b"POST /nowhere HTTP/1.1", 404),
        (b"HEAD /nowhere HTTP/1.1", 404),
        (b"DELETE /systemevent/read HTTP/1.1", 200),
    ]
    async with connect(client) as connection:
        await connection.send(*(request(line=line) for line, _ in lines))
        for line, status in lines:
            answer = await connection.answer(to_head=line.startswith(b"HEAD"))
            assert answer.status == status


async def test_many_pipelined_requests_are_answered(client: Client, database: Sandbox) -> None:
    """A hundred at once, byte after byte of one stream."""
    async with connect(client) as connection:
        bodies = [b'{"id": %d}' % (1 + n % 20) for n in range(100)]
        await connection.send(b"".join(request(body=body) for body in bodies))
        for _ in bodies:
            assert (await connection.answer()).status == 200
    assert await database.read_rows() == {("acme", "alice", n) for n in range(1, 21)}


@pytest.mark.parametrize("token", [True, False])
async def test_many_requests_behind_a_late_body_are_answered(
    client: Client, *, token: bool
) -> None:
    """The parser then stops a request earlier than its queue is full; none is forgotten."""
    async with connect(client) as connection:
        await connection.send(request(b"Expect: 100-continue", b"Content-Length: 9", body=b""))
        assert (await connection.answer()).status == 100
        await connection.send(BODY)
        assert (await connection.answer()).status == 200
        await connection.send(request(token=token) * 100)
        for _ in range(100):
            assert (await connection.answer()).status == (200 if token else 401)


@pytest.mark.parametrize("over", range(6))
async def test_a_body_in_many_chunks_may_wait_for_its_turn(client: Client, over: int) -> None:
    """Of more chunks than aiohttp keeps; wherever it stops in a portion, it goes on."""
    expect = request(b"Expect: 100-continue", b"Content-Length: 10000", body=b"")
    kept = b"1\r\n \r\n" * (2**14 + 1)
    pad = PORTION + over - len(request(TE, b"X-Pad: ", body=kept)) % PORTION
    body = kept + b"1\r\n \r\n" * 100 + CHUNKED
    async with contextlib.AsyncExitStack() as stack:
        first = [await stack.enter_async_context(connect(client)) for _ in range(LARGE_EACH)]
        for connection in first:  # it has the caller's turns
            await connection.send(expect)
            assert (await connection.answer()).status == 100
        last = await stack.enter_async_context(connect(client))
        await last.send(request(TE, b"X-Pad: " + b"x" * pad, body=body))
        connections = server_of(client).connections
        await until(lambda: any(it._reading_paused for it in connections))
        for connection in first:
            await connection.send(BODY.ljust(10_000))
            assert (await connection.answer()).status == 200
        assert (await last.answer()).status == 200


@pytest.mark.parametrize("seed", range(20))
async def test_pipelined_bodies_of_any_size_are_answered(
    client: Client, database: Sandbox, seed: int
) -> None:
    """At the limits of flow control, the last in chunks or not, cut anywhere: none is lost."""
    draw = random.Random(seed)
    marked, data = set(), b""
    count = draw.choice([3, 10, 40])
    for number in range(count):
        event_id, size = draw.randint(1, 20), draw.choice([10, 65_536, 200_000, 300_000])
        marked.add(("acme", "alice", event_id))
        body = b'{"id": %d' % event_id + b" " * size + b"}"
        if number < count - 1 or draw.random() < 0.5:
            data += request(body=body)
            continue
        chunks, at = [], 0
        while at < len(body):
            part = body[at : at + draw.choice([1, 100, 5000, 70_000])]
            chunks.append(b"%x\r\n%b\r\n" % (len(part), part))
            at += len(part)
        data += request(TE, body=b"".join([*chunks, b"0\r\n\r\n"]))
    async with connect(client) as connection:

        async def send() -> None:
            at = 0
            while at < len(data):
                end = at + draw.choice([1000, 65_536, 300_000, len(data)])
                await connection.send(data[at:end])
                at = end

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for _ in range(count):
                assert (await connection.answer()).status == 200
    assert await database.read_rows() == marked


def chunked(*trailers: bytes, token: bool = True, line: bytes = POST) -> bytes:
    """A request in chunks, with trailers."""
    body = CHUNKED.removesuffix(b"\r\n") + b"".join(trailer + b"\r\n" for trailer in trailers)
    return request(TE, body=body + b"\r\n", token=token, line=line)


UPGRADE, H2C = b"Connection: Upgrade", b"Upgrade: h2c"
LAST = {
    "chunked": (chunked(), 200),
    "chunked, no token": (chunked(token=False), 401),
    "chunked, no such path": (chunked(line=b"POST /x HTTP/1.1"), 404),
    "chunked, no such method": (chunked(line=b"GET /systemevent/read HTTP/1.1"), 405),
    "chunked, unknown Expect": (request(TE, b"Expect: x", body=CHUNKED), 417),
    "gzip, chunked": (request(TE.replace(b" ", b" gzip, "), body=CHUNKED), 200),
    "trailer with a junk token": (chunked(b"Authorization: Bearer junk"), 200),
    "trailer with a good token": (chunked(AUTHORIZATION), 200),
    "trailer X-Request-ID": (chunked(b"X-Request-ID: theirs"), 200),
    "trailer Content-Encoding": (chunked(b"Content-Encoding: gzip"), 200),
    "h2c": (request(UPGRADE, H2C), 200),
    "h2c, named twice": (request(UPGRADE + b", Upgrade", H2C), 200),
    "h2c, as Java sends it": (
        request(UPGRADE + b", HTTP2-Settings", b"HTTP2-Settings: x", H2C),
        200,
    ),
    "h2c, without Connection": (request(H2C), 200),
    "h2c, no token": (request(UPGRADE, H2C, token=False), 401),
    "websocket": (request(UPGRADE, b"Upgrade: websocket"), 200),
    "CONNECT": (request(line=b"CONNECT x:80 HTTP/1.1", body=b""), 404),
    "CONNECT with a body": (request(line=b"CONNECT x:80 HTTP/1.1", body=request()), 404),
}


@pytest.mark.parametrize(("sent", "status"), LAST.values(), ids=LAST)
@pytest.mark.parametrize("token", [True, False])
async def test_nothing_of_a_request_reaches_the_next(
    client: Client, database: Sandbox, sent: bytes, status: int, *, token: bool
) -> None:
    """What the parser may keep for the next request ends its connection, and what is behind it."""
    async with connect(client) as connection:
        await connection.send(sent + request(body=b'{"id": 2}', token=token) + request())
        answer = await connection.answer()
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        assert await connection.rest() == b""
    assert await database.read_rows() == (MARKED if status == 200 else set())


async def test_the_requests_before_the_last_are_answered(client: Client) -> None:
    """Each in its place, and only the last one says that it is."""
    async with connect(client) as connection:
        await connection.send(request() + request() + chunked() + request())
        for last in (None, None, "close"):
            assert (await connection.answer()).headers.get("Connection") == last
        assert await connection.rest() == b""


async def test_a_runner_that_is_closing_says_so(start: Start, database: Sandbox) -> None:
    """In every answer from then on, also to a request that was there before."""
    client = await start()
    service = client.server
    assert isinstance(service, Service)
    assert isinstance(service.runner, Runner)
    async with connect(client) as connection, connect(client) as other:
        async with database.owner.transaction():
            await database.owner.execute("lock table system_event_read in exclusive mode")
            await connection.send(request() + request())
            while not await database.owner.fetch("select from pg_locks where not granted"):
                pass
            service.runner.closing = True
        answer = await connection.answer()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert await connection.rest() == b""
        await other.send(request(token=False))
        answer = await other.answer()
        assert (answer.status, answer.headers["Connection"]) == (401, "close")
        assert await other.rest() == b""


@contextlib.asynccontextmanager
async def deaf(server: web.Server, port: int | None) -> AsyncIterator[socket.socket]:
    """Connect, with little room for answers that nobody reads; all ends within PATIENCE."""
    before = len(server.connections)
    async with asyncio.timeout(PATIENCE):
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", port))
            made.setblocking(False)  # noqa: FBT003 - it takes no keyword
            await until(lambda: len(server.connections) > before)
            transport = server.connections[-1].transport
            assert transport is not None
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            yield made


async def until(condition: Callable[[], bool]) -> None:
    """Let the service go on until a condition holds of it."""
    while not condition():
        await asyncio.sleep(0)


def unread(server: web.Server) -> int:
    """How many bytes wait in the service for clients to read them."""
    transports = [connection.transport for connection in server.connections]
    return sum(transport.get_write_buffer_size() for transport in transports if transport)


@pytest.mark.parametrize(
    ("files", "connections"),
    [(1024, 874), (200, 100), (1_000_000, 10_000), (resource.RLIM_INFINITY, 10_000)],
)
def test_there_are_descriptors_for_all_connections(
    monkeypatch: pytest.MonkeyPatch, files: int, connections: int
) -> None:
    """And some are left for the database, the log and the operator's port."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert Terms(Cors(config.Cors()), Observers(), 8190, 10).most == connections


async def test_who_connects_and_asks_nothing_makes_room(
    start: Start, database: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are as many connections as there may be, the longest idle one is closed."""
    monkeypatch.setattr("service.web.terms.MOST", 4)
    client = await start()
    async with contextlib.AsyncExitStack() as stack:

        async def opened() -> Connection:
            return await stack.enter_async_context(connect(client))

        busy = await opened()
        await stack.enter_async_context(database.owner.transaction())
        await database.owner.execute("lock table system_event_read")
        await busy.send(request())
        kept = await opened()
        silent = [await opened() for _ in range(2)]
        await silent[1].send(POST)
        await kept.send(request(token=False))
        assert (await kept.answer()).status == 401
        more = [await opened() for _ in range(2)]
        for connection in silent:
            assert await connection.rest() == b""
        for connection in (kept, *more):
            await connection.send(request(token=False))
            assert (await connection.answer()).status == 401
        # Whoever has had an answer is idle again, and who has gone counts no more.
        await opened()
        assert await kept.rest() == b""
        more[0].hang_up()
        await until(lambda: len(server_of(client).connections) == 3)
        await opened()
        await more[1].send(request(token=False))
        assert (await more[1].answer()).status == 401
        await database.owner.execute("rollback")
        assert (await busy.answer()).status == 200


def of(user: str, *lines: bytes, body: bytes = BODY) -> bytes:
    """A request of somebody."""
    authorization = f"Authorization: {bearer(user)['Authorization']}".encode()
    return request(authorization, *lines, body=body, token=False)


STALLED = (b"Content-Length: 9", b"Expect: 100-continue")


async def test_who_is_late_with_a_body_makes_room(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all connections have a request, the one whose body is awaited longest is closed."""
    monkeypatch.setattr("service.web.terms.MOST", 4)
    client = await start()
    async with contextlib.AsyncExitStack() as stack:
        late = {}
        for user in ("alice", "bob", "owner", "admin"):
            late[user] = await stack.enter_async_context(connect(client))
            await late[user].send(of(user, *STALLED, body=b""))
            assert (await late[user].answer()).status == 100
        await late["alice"].send(BODY)
        assert (await late["alice"].answer()).status == 200
        await late["alice"].send(of("alice", *STALLED, body=b""))  # the last now
        assert (await late["alice"].answer()).status == 100
        other = await stack.enter_async_context(connect(client))
        await other.send(of("gina"))
        assert (await other.answer()).status == 200
        assert await late.pop("bob").rest() == b""
        for connection in late.values():
            await connection.send(BODY)
            assert (await connection.answer()).status == 200


async def test_one_caller_leaves_connections_to_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests of theirs wait for what: a quarter is theirs."""
    monkeypatch.setattr("service.web.terms.MOST", 8)
    client = await start()
    async with contextlib.AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(connect(client)) for _ in range(2)]
        for connection in stalled:
            await connection.send(of("alice", *STALLED, body=b""))
            assert (await connection.answer()).status == 100
        for user, status in (("alice", 503), ("gina", 200)):
            async with connect(client) as connection:
                await connection.send(of(user))
                assert (await connection.answer()).status == status
        for connection in stalled:
            await connection.send(BODY)
            assert (await connection.answer()).status == 200
            await connection.send(of("alice"))  # it has its share again
            assert (await connection.answer()).status == 200


async def test_a_path_of_many_slashes_is_not_looked_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route would be looked for at each of them; those of a query do not count."""
    looked_up, resolve = [], web.UrlDispatcher.resolve

    async def look_up(router: web.UrlDispatcher, request: web.Request) -> web.UrlMappingMatchInfo:
        looked_up.append(request.rel_url.path)
        return await resolve(router, request)

    monkeypatch.setattr(web.UrlDispatcher, "resolve", look_up)
    slashes = b"/" * 8000
    async with connect(client) as connection:
        for path, status in (
            (slashes, 404),
            (b"http://x" + slashes, 404),
            (b"/systemevent/read?" + slashes, 200),
        ):
            await connection.send(request(line=b"POST %b HTTP/1.1" % path))
            assert (await connection.answer()).status == status
    assert looked_up == ["/nowhere", "/nowhere", "/systemevent/read"]


@pytest.mark.parametrize(
    "sent",
    [request(), request(token=False), request(line=b"PUT /systemevent/read HTTP/1.1")],
    ids=["good", "no token", "no such method"],
)
async def test_a_client_that_never_reads_is_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """What it sends waits while its answers do, so that memory is flat; then there is an end."""
    monkeypatch.setattr("service.web.connection.SLOWEST", math.inf)
    client = await start(LIMITS_DEADLINE="0.3", LIMITS_BODY_DEADLINE="0.3")
    server, loop = server_of(client), asyncio.get_running_loop()

    async def flood(sock: socket.socket) -> None:
        for _ in range(2000):
            await loop.sock_sendall(sock, sent * 50)
            assert unread(server) < 200_000

    async with deaf(server, client.port) as sock:
        with pytest.raises(ConnectionError):
            await flood(sock)
        await until(lambda: not server.connections)


@pytest.mark.late
@pytest.mark.single("time for 2,000 marks one after the other")
async def test_a_client_that_reads_later_gets_all_its_answers(start: Start) -> None:
    """Waiting for it loses and repeats nothing."""
    client, count = await start(), 600  # more than fits on the way
    server, loop = server_of(client), asyncio.get_running_loop()

    async def send(sock: socket.socket) -> None:
        for number in range(count):
            await loop.sock_sendall(sock, request(b"X-Request-ID: %d" % number))

    async with deaf(server, client.port) as sock:
        sending, read = asyncio.create_task(send(sock)), b""
        await until(lambda: sending.done() or server.connections[0].writing_paused)
        while read.count(b"true}") < count:
            read += await loop.sock_recv(sock, 65_536)
        await sending
    found = re.findall(rb"X-Request-ID: (\d+)", read)
    assert [int(number) for number in found] == list(range(count))


async def test_an_idle_client_that_never_read_is_cut_off(start: Start) -> None:
    """A connection that is closed does not wait for ever until its last answers are taken."""
    client = await start(SERVER_KEEPALIVE="0.1", LIMITS_DEADLINE="0.3", LIMITS_BODY_DEADLINE="0.3")
    server, loop = server_of(client), asyncio.get_running_loop()
    async with deaf(server, client.port) as sock:
        while not unread(server):
            await loop.sock_sendall(sock, request(token=False))
            await asyncio.sleep(0)
        await until(lambda: not server.connections)


async def test_answers_that_nobody_takes_are_bounded_in_total(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clients together leave too much to us, who has left it for the longest is cut off."""
    monkeypatch.setattr("service.web.terms.UNTAKEN", 100_000)  # less than two leave
    client = await start(LIMITS_DEADLINE="600")  # which answers have as well
    server, loop = server_of(client), asyncio.get_running_loop()

    async def fill(sock: socket.socket) -> None:
        while not server.connections[-1].writing_paused:
            await loop.sock_sendall(sock, request(token=False))
            await asyncio.sleep(0)

    async with deaf(server, client.port) as first:
        await fill(first)
        async with deaf(server, client.port) as second:
            await fill(second)
            await until(lambda: len(server.connections) == 1)
            transport = server.connections[0].transport
            assert transport is not None
            assert transport.get_extra_info("peername") == second.getsockname()


async def test_who_leaves_little_is_not_cut_off_for_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it has been: the caller who leaves most pays, with what was left first."""
    monkeypatch.setattr("service.web.terms.UNTAKEN", 170_000)  # less than three leave
    client = await start(LIMITS_DEADLINE="600")
    server, loop = server_of(client), asyncio.get_running_loop()

    async def fill(sock: socket.socket, user: str) -> None:
        while not server.connections[-1].writing_paused:
            await loop.sock_sendall(sock, of(user))
            await asyncio.sleep(0)

    async with contextlib.AsyncExitStack() as stack:
        names: dict[Any, int] = {}
        for user in ("gina", "alice", "alice"):
            sock = await stack.enter_async_context(deaf(server, client.port))
            names[sock.getsockname()] = len(names)
            await fill(sock, user)
        await until(lambda: len(server.connections) == 2)
        transports = [connection.transport for connection in server.connections]
        assert [names[it.get_extra_info("peername")] for it in transports if it] == [0, 2]


async def test_garbage_behind_a_request_is_refused(client: Client, database: Sandbox) -> None:
    """Whether the request before it is served or not, its answer says so."""
    async with connect(client) as connection:
        await connection.send(request() + b"garbage\r\n\r\n")
        first = await connection.answer()
        assert await database.read_rows() == (MARKED if first.status == 200 else set())
        if first.status == 200:
            assert (await connection.answer()).status == 400
        assert await connection.rest() == b""


async def test_what_comes_behind_garbage_takes_no_memory(start: Start, database: Sandbox) -> None:
    """However much it is, and however long the request before it takes."""
    client = await start(LIMITS_DEADLINE="1", LIMITS_BODY_DEADLINE="1")
    async with connect(client) as connection, database.owner.transaction():
        await database.owner.execute("lock table system_event_read")
        await connection.send(request())
        while not await database.owner.fetchval("select count(*) from pg_locks where not granted"):
            pass
        tracemalloc.start()
        try:
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    await connection.send(b"garbage " * 2**15)
            await until(lambda: not server_of(client).connections)
            assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        finally:
            tracemalloc.stop()


async def test_a_chunk_that_breaks_later_is_refused(
    client: Client, database: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A body found broken once the request is under way is a 400, too; then the connection ends."""

    async def break_off(body: bytes) -> None:
        async with connect(client) as connection:
            await connection.send(request(TE, b"Expect: 100-continue", body=b""))
            assert (await connection.answer()).status == 100
            await connection.send(body)
            assert (await connection.answer()).status == 400
            assert await connection.rest() == b""

    broken = (b"zz\r\n", b"9\r\n" + BODY + b"x\r\n", b"f" * 17 + b"\r\n")
    await asyncio.gather(*map(break_off, broken))
    assert await database.read_rows() == set()
    assert not caplog.records


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("ahead", [0, 40])  # as many requests as make aiohttp pause its parser
async def test_chunks_of_a_byte_are_parsed_in_many_turns_of_the_loop(
    client: Client, monkeypatch: pytest.MonkeyPatch, ahead: int, *, token: bool
) -> None:
    """However many connections send them; others have their turn in between."""
    most = 0  # chunks that were parsed in one turn
    count = 0

    def parsed(reader: StreamReader) -> None:
        nonlocal most, count
        count += 1
        most = max(most, count)

    async def turns() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0)
            count = 0

    monkeypatch.setattr(StreamReader, "begin_http_chunk_receiving", parsed)
    monkeypatch.setattr(StreamReader, "end_http_chunk_receiving", lambda _: None)
    watch = asyncio.create_task(turns())
    body = b"1\r\n \r\n" * 10_000 + CHUNKED
    before = request(line=b"GET /nothing HTTP/1.1", body=b"", token=False) * ahead

    async def send() -> None:
        async with connect(client) as connection:
            await connection.send(before + request(TE, body=body, token=token))
            for _ in range(ahead):
                assert (await connection.answer()).status == 404
            assert (await connection.answer()).status == (200 if token else 401)
            with contextlib.suppress(ConnectionResetError):  # what is left is not read for ever
                assert await connection.rest() == b""

    await asyncio.gather(*(send() for _ in range(5)))
    watch.cancel()
    # Without requests ahead, each connection's first portion is parsed as it is read.
    assert most < (1000 if ahead else 2500)


async def test_what_waits_to_be_parsed_is_bounded(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends chunks faster than they are parsed is not read meanwhile."""
    most = 0

    def measured(read: bytearray) -> bytes:
        nonlocal most
        most = max(most, len(read))
        return portion(read)

    monkeypatch.setattr(connection_module, "portion", measured)
    async with connect(client) as connection:
        await connection.send(request(TE, body=b"1\r\n \r\n" * 400_000 + CHUNKED))
        assert (await connection.answer()).status == 413
    assert 0 < most < 2**20


async def test_chunks_behind_an_answer_are_not_parsed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies that nobody asked for take no turns from those of others; all of it can be sent."""
    parsed, begin = 0, StreamReader.begin_http_chunk_receiving

    def count(reader: StreamReader) -> None:
        nonlocal parsed
        parsed += 1
        begin(reader)

    monkeypatch.setattr(StreamReader, "begin_http_chunk_receiving", count)
    async with connect(client) as connection:
        chunks = b"1\r\n \r\n" * 40_000
        await connection.send(request(TE, token=False, body=chunks))
        assert (await connection.answer()).status == 401
        await connection.send(chunks * 4)
        assert await connection.rest() == b""
    assert parsed < 2000


@pytest.mark.parametrize("line", [b"CONNECT x:80 HTTP/1.1", b"GET /x HTTP/1.1"])
async def test_what_is_behind_an_upgrade_is_not_parsed(
    client: Client, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """It has no answer, and aiohttp would parse all of it at once."""

    def parsed(_: StreamReader) -> NoReturn:
        pytest.fail("parsed")

    monkeypatch.setattr(StreamReader, "begin_http_chunk_receiving", parsed)
    async with connect(client) as connection:
        upgrade = request(UPGRADE, b"Upgrade: websocket", line=line, body=b"")
        await connection.send(upgrade + request(TE, body=b"1\r\n \r\n" * 10_000))
        answer = await connection.answer()
        assert (answer.status, answer.headers["Connection"]) == (404, "close")


async def test_a_body_that_breaks_behind_its_answer_is_no_fault(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of a refused request is dropped, malformed or not, and nothing is logged."""
    async with connect(client) as connection:
        await connection.send(request(TE, body=b"", token=False))
        assert (await connection.answer()).status == 401
        await connection.send(b"zz\r\n")
        await connection.rest()
    assert not caplog.records


@pytest.mark.parametrize("length", [b"Content-Length: 9", TE])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_hang_up_in_the_body_is_one_quiet_line(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    length: bytes,
    *,
    reset: bool,
) -> None:
    """It is no fault of ours: no traceback, no 500."""
    lines: list[Any] = []
    monkeypatch.setattr("service.logs.write", lines.extend)
    client = await start(LOGGING_LEVEL="info")
    caplog.clear()
    async with connect(client) as connection:
        await connection.send(request(length, b"Expect: 100-continue", body=b"9\r\n{"))
        assert (await connection.answer()).status == 100
        connection.hang_up(reset=reset)
        await until(lambda: bool(lines))
    async with connect(client) as connection:
        await connection.send(request())
        assert (await connection.answer()).status == 200
    await until(lambda: len(lines) == 2)
    assert [(line.status, line.cause) for line in lines] == [(400, "hung up"), (200, None)]
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("length", [b"Content-Length: 9", TE])
async def test_a_body_cut_short_marks_nothing(
    client: Client, database: Sandbox, length: bytes
) -> None:
    """A client that hangs up in the middle of its body is not served, and harms nobody."""
    async with connect(client) as connection:
        await connection.send(request(length, b"Expect: 100-continue", body=b""))
        assert (await connection.answer()).status == 100
        await connection.send(b'9\r\n{"id"'[:: 1 if length == TE else -1])
    async with connect(client) as connection:
        await connection.send(request(body=b'{"id": 2}'))
        assert (await connection.answer()).status == 200
    assert await database.read_rows() == {("acme", "alice", 2)}


async def test_the_mark_of_a_client_that_hangs_up_is_kept(
    client: Client, database: Sandbox
) -> None:
    """A statement under way is committed, whether anybody waits for its answer or not."""
    waiting = "select count(*) from pg_locks where not granted"
    async with connect(client) as connection:
        async with database.owner.transaction():
            await database.owner.execute("lock table system_event_read")
            await connection.send(request())
            while not await database.owner.fetchval(waiting):
                pass
            connection.hang_up()
        while await database.read_rows() != MARKED:
            pass


async def test_http_1_0_is_served(client: Client) -> None:
    """Without keep-alive the connection is closed after the answer, with it it stays."""
    line = b"POST /systemevent/read HTTP/1.0"
    async with connect(client) as connection:
        await connection.send(request(b"Connection: keep-alive", line=line))
        assert (await connection.answer()).status == 200
        await connection.send(request(line=line))
        answer = await connection.answer()
        assert (answer.version, answer.status) == ("HTTP/1.0", 200)
        assert await connection.rest() == b""


async def test_connection_close_is_honoured(client: Client) -> None:
    async with connect(client) as connection:
        await connection.send(request(b"Connection: close"))
        assert (await connection.answer()).headers["Connection"] == "close"
        assert await connection.rest() == b""


async def test_a_compressed_body_is_never_inflated(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb is refused unread, with or without a token, while others are served."""

    def inflate(*_: object, **__: object) -> NoReturn:
        pytest.fail("inflated")

    monkeypatch.setattr("aiohttp.http_parser.ZLibDecompressor", inflate)
    bomb = gzip.compress(bytes(50_000_000))
    for token, status in ((True, 415), (False, 401)):
        async with connect(client) as bomber, connect(client) as other:
            await bomber.send(request(b"Content-Encoding: gzip", body=bomb, token=token))
            await other.send(request())
            assert (await other.answer()).status == 200
            assert (await bomber.answer()).status == status


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("token", [True, False])
async def test_a_body_far_over_the_limit_gets_its_answer(
    client: Client, *, chunked: bool, token: bool
) -> None:
    """A client that sends all of it before it reads still reads why it was refused."""
    size = 10_000_000
    async with connect(client) as connection:
        if chunked:
            await connection.send(request(TE, body=b"%x\r\n" % size, token=token))
        else:
            await connection.send(request(b"Content-Length: %d" % size, body=b"", token=token))
        await connection.send(bytes(size))
        assert (await connection.answer()).status == (413 if token else 401)


async def test_a_stalled_body_holds_up_nobody(client: Client) -> None:
    """While bodies do not arrive, other callers are answered."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            stalled = await stack.enter_async_context(connect(client))
            await stalled.send(request(b"Expect: 100-continue", b"Content-Length: 9", body=b'{"id'))
            assert (await stalled.answer()).status == 100
        async with connect(client) as other:
            await other.send(request())
            assert (await other.answer()).status == 200


async def test_a_stalled_body_is_given_up(start: Start, database: Sandbox) -> None:
    """After the body's deadline: 408, nothing marked, and the connection is closed."""
    client = await start(LIMITS_BODY_DEADLINE="0.1")

    async def stall(length: bytes, line: bytes) -> None:
        async with connect(client) as connection:
            await connection.send(request(length, line=line, body=b"9\r\n{"))
            answer = await connection.answer()
            assert (answer.status, answer.headers["Connection"]) == (408, "close")
            assert await connection.rest() == b""

    lines = (POST, b"DELETE /systemevent/read HTTP/1.1", b"POST /systemevent HTTP/1.1")
    lengths = (b"Content-Length: 10", TE)
    await asyncio.gather(*(stall(length, line) for length in lengths for line in lines))
    assert await database.read_rows() == set()
