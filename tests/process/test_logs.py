"""Logs: a line for each request, in JSON and in text, that no input can forge, without secrets."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import ROLE, ROOT, SECRET, Sandbox, bearer, new_database, psql, token
from tests.support.cluster import Cluster
from tests.support.metrics import scrape
from tests.support.process import Process, run

PASSWORD = "dsn-password-7f3a"
HEADER = "header-value-7f3a"
TOKEN = token()
HIDDEN = {
    "secret": SECRET,
    "password": PASSWORD,
    "header": HEADER,
    "token": TOKEN,
    "claims": TOKEN.split(".")[1],
    "signature": TOKEN.split(".")[2],
}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FORGED = '{"time":"2026-01-01T00:00:00.000Z","level":"error","message":"forged"}'

# name, which is the X-Request-ID too -> method, target, headers, body
ORDINARY: Mapping[str, tuple[str, str, Mapping[str, str], str]] = {
    "marked": ("POST", "/systemevent/read", {"Authorization": f"Bearer {TOKEN}"}, '{"ids":[1,2]}'),
    "unmarked": ("DELETE", "/systemevent/read", bearer("bob"), '{"id":1}'),
    "listed": ("POST", "/systemevent", bearer(), "{}"),
    "no-ids": ("POST", "/systemevent/read", bearer(), "{}"),
    "not-json": ("POST", "/systemevent/read", bearer(), "id=5"),
    "bad-take": ("POST", "/systemevent", bearer("bob"), '{"take":0}'),
    "no-user": ("POST", "/systemevent/read", {}, '{"id":1}'),
    "no-path": ("GET", "/nowhere", {"Cookie": HEADER, "X-Custom": HEADER}, ""),
    "in-query": ("POST", f"/systemevent/read?access_token={TOKEN}", {}, '{"id":1}'),
    "basic": ("POST", "/systemevent/read", {"Authorization": f"Basic {HEADER}"}, '{"id":1}'),
    "bad-token": ("POST", "/systemevent/read", {"Authorization": f"Bearer {TOKEN}{HEADER}"}, ""),
    "traced": ("POST", "/systemevent", {**bearer(), "Traceparent": TRACEPARENT}, "{}"),
    "our-fault": ("POST", "/systemevent/read", bearer("gina"), '{"id":1}'),
}
TARGETS = [
    b"/\xe2\x80\xa8" + FORGED.encode(),
    b"/\xc2\x85forged",
    b"/\xc2\x9b31mforged",
    b"/\xe2\x80\xaeforged",
    b"/\xfffor\xc3ged",
    b"/\xed\xa0\x80",
    b"/%0a" + FORGED.encode(),
    b'/","level":"error","x":"',
    b"/a=b",
    b'/"status=200',
    b"/\\",
    b"/\x1b[31mforged",
    b"/a\tb",
    b"/\x7f",
    b"/" + b"x" * 4000,
]
REQUEST_IDS = [
    b'x","level":"error',
    b"a b",
    b"a\tb",
    b"x" * 65,
    b"\xc3\xa9",
    b"\xff",
    b"a;b",
    b"",
]
USERS = [
    f"eve\n{FORGED}",
    f"eve\r{FORGED}",
    f"eve\u2028{FORGED}",
    f"eve\u2029{FORGED}",
    f"eve\u0085{FORGED}",
    "eve\x0b\x0c\x1c\x1d\x1e",
    "eve\x1b[31m",
    "eve\u009b31m",
    "eve\x7f\x08",
    "eve\u202e\u2066",
    'eve","level":"error","x":"',
    "eve status=200 cause=forged",
    'eve" status=200 x="',
    'eve\\" status=200 x="',
    "eve\\",
    "\u00e9v\u00e9 \U0001f514",
    "e" * 250,
]
REQUESTS = len(ORDINARY) + len(TARGETS) + len(REQUEST_IDS) + len(USERS)


@dataclass
class Written:
    """What a service wrote, and what it answered."""

    output: str
    answers: list[bytes]

    def line(self, text: str) -> str:
        """The one line about a request that holds `text`."""
        (line,) = [line for line in self.output.split("\n") if text in line and "ms" in line]
        return line


QUOTED = r'"(?:[^"\\]|\\.)*"'
FIELD = rf' (\w+)=({QUOTED}|[^\s"=\\]+)'
LINE = rf'(\S+) (\w+)(?: ({QUOTED}|[^"=\\]+?))?((?:{FIELD})*)'


def parsed(line: str) -> dict[str, str]:
    """A line of text by its own rules: time, level, message, name=value; in quotes it is JSON."""
    found = re.fullmatch(LINE, line)
    assert found, line
    fields = re.findall(FIELD, found[4])
    assert len({name for name, _ in fields}) == len(fields)
    pairs = [("time", found[1]), ("level", found[2]), ("message", found[3] or ""), *fields]
    return {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in pairs
        if value
    }


async def send(process: Process, request: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def raw(method: str, target: bytes, headers: Mapping[str, bytes], body: bytes = b"") -> bytes:
    """A request, tidied up by nobody."""
    fields = {"Host": b"x", "Connection": b"close", "Content-Length": b"%d" % len(body), **headers}
    lines = [method.encode() + b" " + target + b" HTTP/1.1"]
    lines += [name.encode() + b": " + value for name, value in fields.items()]
    return b"\r\n".join([*lines, b"", body])


@pytest.fixture(scope="module")
async def written(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Written]]:
    """What two services, of which one logs JSON and one text, write on the requests above."""
    with new_database(cluster, "logs") as url:
        psql(
            url,
            "create function fail() returns trigger language plpgsql as "
            "$$ begin raise 'a fault\nin two lines'; end $$",
            "create trigger fail before insert on system_event_read for each row "
            "when (new.user_id = 'gina') execute function fail()",
        )
        found = {}
        for form, level in (("json", "debug"), ("text", "info")):
            environ = {
                "AUTH_SECRET": SECRET,
                "DATABASE_URL": cluster.url("logs", f"{ROLE}:{PASSWORD}"),
                "LOGGING_FORMAT": form,
                "LOGGING_LEVEL": level,
            }
            async with run("serve", cwd=tmp_path_factory.mktemp(form), environ=environ) as process:
                await process.says("ready")
                while await process.get("/ready") != 200:
                    pass
                answers = await _ask(process)
                assert await process.ended(signal.SIGTERM) == 0
            found[form] = Written("".join(process.errors), answers)
        yield found


async def _ask(process: Process) -> list[bytes]:
    answers = []
    for name, (method, target, headers, body) in ORDINARY.items():
        encoded = {key: value.encode() for key, value in headers.items()}
        encoded["X-Request-ID"] = name.encode()
        answers.append(await send(process, raw(method, target.encode(), encoded, body.encode())))
    answers += [await send(process, raw("GET", target, {})) for target in TARGETS]
    for given in REQUEST_IDS:
        answers.append(await send(process, raw("GET", b"/id", {"X-Request-ID": given})))
    for user in USERS:
        authorization = bearer(user)["Authorization"].encode()
        request = raw("POST", b"/systemevent/read", {"Authorization": authorization}, b'{"id":1}')
        answers.append(await send(process, request))
    return answers


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("marked", {"status": 200, "user": "alice", "ids": 2}),
        ("unmarked", {"method": "DELETE", "status": 200, "user": "bob", "ids": 1}),
        ("listed", {"path": "/systemevent", "status": 200, "user": "alice"}),
        ("no-ids", {"status": 400, "user": "alice", "cause": "no ids"}),
        ("not-json", {"status": 400, "user": "alice", "cause": "not JSON"}),
        (
            "bad-take",
            {"path": "/systemevent", "status": 400, "user": "bob", "cause": "filter take"},
        ),
        ("no-user", {"status": 401, "cause": "unauthenticated"}),
        ("no-path", {"method": "GET", "path": "/nowhere", "status": 404}),
        ("in-query", {"status": 401, "cause": "unauthenticated"}),
        (
            "traced",
            {
                "path": "/systemevent",
                "status": 200,
                "user": "alice",
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "span_id": "00f067aa0ba902b7",
            },
        ),
        ("our-fault", {"status": 500, "user": "gina", "ids": 1}),
    ],
)
def test_a_request_line(written: dict[str, Written], name: str, fields: dict[str, Any]) -> None:
    """The same fields in both forms: what was asked, by whom, the answer, and how long it took."""
    line = json.loads(written["json"].line(f'"request":"{name}"'))
    assert isinstance(line.pop("ms"), float)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    ordinary = {"level": "info", "method": "POST", "path": "/systemevent/read", "request": name}
    assert line == ordinary | fields

    text = parsed(written["text"].line(f" request={name}"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text.pop("time"))
    assert float(text.pop("ms")) >= 0
    assert text == {key: str(value) for key, value in (ordinary | fields).items()}


def test_both_forms_say_the_same(written: dict[str, Written]) -> None:
    """Field by field, whatever is in them: so no input forges a field in the form of text."""

    def told(line: Mapping[str, object]) -> dict[str, str]:
        changing = {"time", "ms", "request"}
        return {name: str(value) for name, value in line.items() if name not in changing}

    json_lines = [json.loads(line) for line in written["json"].output.splitlines()]
    text_lines = [parsed(line) for line in written["text"].output.splitlines()]
    expected = [told(line) for line in json_lines if "ms" in line]
    assert [told(line) for line in text_lines if "ms" in line] == expected


@pytest.mark.parametrize("form", ["json", "text"])
def test_one_line_for_each_request(written: dict[str, Written], form: str) -> None:
    """As many request lines as requests, whatever was in them."""
    pattern = '"ms":' if form == "json" else " ms="
    assert len(written[form].answers) == REQUESTS
    assert written[form].output.count(pattern) == REQUESTS


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_input_forges_a_line(written: dict[str, Written], form: str) -> None:
    """Every line is one of ours, for readers that know more line ends than one, too."""
    output = written[form].output
    assert output.splitlines() == output.removesuffix("\n").split("\n")
    for line in output.splitlines():
        if form == "json":
            assert {"time", "level"} < json.loads(line).keys()
        else:
            assert re.match(r"\S{23}Z (debug|info|warning|error) ", line)
            assert parsed(line)


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_input_reaches_the_terminal(written: dict[str, Written], form: str) -> None:
    """Nothing that moves a cursor, changes a colour or turns text around is written as it is."""
    output = written[form].output.replace("\n", "")
    assert {character for character in output if not character.isprintable()} == set()


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("what", HIDDEN)
def test_no_secret_is_written(written: dict[str, Written], form: str, what: str) -> None:
    """No token, secret, password or header value, at any level, wherever the caller put it."""
    assert HIDDEN[what] not in written[form].output


@pytest.mark.parametrize("form", ["json", "text"])
def test_ids_that_are_not_sane_are_replaced(written: dict[str, Written], form: str) -> None:
    """A caller's X-Request-ID is kept where it is short and plain; else it is replaced."""
    ids = [
        found[1].decode()
        for answer in written[form].answers
        if (found := re.search(rb"\r\nX-Request-ID: (.*)\r\n", answer))
    ]
    assert ids[: len(ORDINARY)] == list(ORDINARY)
    made = ids[len(ORDINARY) :]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+-[0-9a-f]+", each) for each in made)


def test_long_input_is_cut(written: dict[str, Written]) -> None:
    """A path or user id of any length makes a short line."""
    for form in written.values():
        assert max(map(len, form.output.split("\n"))) < 5000
        assert "x" * 201 not in form.output
        assert "e" * 201 not in form.output


def test_our_own_fault_is_logged(written: dict[str, Written]) -> None:
    """A 500 tells the caller nothing and the log all, under the id that the caller got."""
    answer = written["json"].answers[list(ORDINARY).index("our-fault")]
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"\r\nX-Request-ID: our-fault\r\n" in answer
    assert answer.endswith(b'\r\n\r\n{"error":"internal server error"}')

    (line,) = [line for line in written["json"].output.split("\n") if '"internal error"' in line]
    record = json.loads(line)
    assert (record["level"], record["request"]) == ("error", "our-fault")
    assert "RaiseError: a fault\nin two lines" in record["exception"]

    (line,) = [line for line in written["text"].output.split("\n") if " internal error " in line]
    assert " error " in line
    assert " request=our-fault " in line
    assert r"RaiseError: a fault\nin two lines" in line


async def test_the_level_silences_request_lines(
    written: dict[str, Written], cluster: Cluster, tmp_path: Path
) -> None:
    """Above info there is no line per request."""
    url = cluster.url("logs", ROLE)
    environ = {"AUTH_SECRET": SECRET, "DATABASE_URL": url, "LOGGING_LEVEL": "warning"}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        while await process.get("/ready") != 200:
            pass
        assert (await process.post())[0] == 200
        assert await process.ended(signal.SIGTERM) == 0
    assert process.errors == []


SAYS = """
import sys, threading, warnings
from service import config, logs
logs.set_up(config.Logging(format=sys.argv[1]))
class Broken:
    def __del__(self):
        raise ValueError("unraisable")
warnings.warn("warned")
print("printed", file=sys.stderr)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
Broken()
raise KeyError("uncaught\\nfor ever")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_all_of_standard_error_has_one_form(form: str) -> None:
    """Also what libraries warn of, what is printed, and what nobody catches."""
    command = [sys.executable, "-c", SAYS, form]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    read = json.loads if form == "json" else parsed
    lines = [read(line) for line in done.stderr.splitlines()]
    said = [line["message"] + line.get("exception", "") for line in lines]
    assert done.returncode == 1
    for text, line in zip(
        ["warned", "printed", "ZeroDivisionError", "unraisable", "uncaught"], said, strict=True
    ):
        assert text in line


@pytest.mark.parametrize("form", ["json", "text"])
async def test_the_first_message_has_the_form_too(form: str, tmp_path: Path) -> None:
    """What is wrong with the configuration is told in the form that it asks for."""
    environ = {"LOGGING_FORMAT": form, "LIMITS_DEADLINE": "none"}
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        assert await process.ended() == 1
    (line,) = process.errors
    told = json.loads(line) if form == "json" else parsed(line.rstrip())
    assert told["level"] == "error"
    assert told["message"].startswith("limits.deadline: ")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_standard_error_that_nobody_reads_stops_nothing(
    database: Sandbox, tmp_path: Path, workers: str
) -> None:
    """Lines are dropped and counted, the others stay whole, and the log adds up in the end."""
    many = 6000
    environ = {
        "AUTH_SECRET": SECRET,
        "DATABASE_URL": database.url,
        "SERVER_WORKERS": workers,
    }
    async with run("serve", cwd=tmp_path, environ=environ) as process:
        while await process.get("/ready") != 200:
            pass

        async def ask(session: aiohttp.ClientSession) -> None:
            for _ in range(many // 10):
                async with session.get(f"{process.base}/{'x' * 200}") as answer:
                    assert answer.status == 404

        connector = aiohttp.TCPConnector(force_close=workers != "1")  # so that each has some
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(ask(session) for _ in range(10)))
        counted = (await scrape(process.admin)).sum("log_lines_dropped_total")
        await process.says("lines dropped")
        assert await process.ended(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in process.errors]
    dropped = [
        int(line["message"].rpartition(" ")[2])
        for line in lines
        if line.get("message", "").startswith("lines dropped")
    ]
    assert sum(dropped) + sum("ms" in line for line in lines) == many
    assert 0 < counted <= sum(dropped)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_closed_standard_descriptors_stop_nothing(
    database: Sandbox, tmp_path: Path, workers: str
) -> None:
    """As a careless supervisor starts it; no socket of ours becomes standard error."""
    environ = {
        "AUTH_SECRET": SECRET,
        "DATABASE_URL": database.url,
        "SERVER_WORKERS": workers,
    }
    program = ("sh", "-c", 'exec "$0" -m service "$@" <&- >&- 2>&-', sys.executable)
    async with run("serve", cwd=tmp_path, program=program, environ=environ) as process:
        while await process.get("/ready") != 200:
            pass
        assert (await process.post())[0] in (200, 401)
        descriptors = Path(f"/proc/{process.process.pid}/fd")
        assert {str((descriptors / str(n)).readlink()) for n in range(3)} == {"/dev/null"}
        assert await process.ended(signal.SIGTERM) == 0
