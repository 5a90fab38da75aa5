"""The phase bell: what a badge, a page and mark-all cost, by organization, caller and window."""

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from bench.load import Key, Load, Sample, write_tokens
from bench.postgres import Databases, Size
from bench.servers import SECRET, Server, Starter

DAY = 100  # events of the small organizations, all of one day
MIDDLE = 10_000  # events of the middle one in a year; those of the large one are an argument
SMALL = 20  # organizations
ROLES = {"owner": "owner", "few": "member of 5 workspaces", "many": "member of 10,000 workspaces"}
READ = ("nothing", "half", "all")
WINDOWS = {"a day": 0, "a month": 30, "a year": 366}
CALLS: Mapping[str, tuple[str, dict[str, object]]] = {
    "count": ("systemevent/count", {}),
    "first page": ("systemevent", {"cursor": None}),
    "first page of the unread": ("systemevent", {"cursor": None, "showUnread": True}),
}
# On an ordinary day, by all callers of the small organizations
BADGE, LIST, BADGE_BEFORE, LIST_BEFORE = (
    f"{call}, a day of {DAY} events"
    for call in ("badge by count", "list", "badge by list, before", "list, before")
)
ORDINARY = 8  # connections
ALL, IDS = "mark-all", "the same ids, 10,000 in a request"
MARKED = 100_000  # events, by each
ALONE, BESIDE = "marks, nobody else", "marks, beside mark-alls"
MARKING = 64  # connections
MARK_ALL = "systemevent/read/all"


class Year(Size):
    """The database: organizations of different sizes; `events` are the middle one's."""

    @property
    def name(self) -> str:
        """Of the database."""
        return "bench_bell"


def case(call: str, role: str, read: str, window: str) -> str:
    """Its name in the tables."""
    return f"{call}, {ROLES[role]}, {read} read, {window}"


@dataclass
class Bell:
    """All cases, on a database of their own."""

    databases: Databases
    load: Load
    folder: Path
    large: int  # events of the large organization, in a year
    seconds: float  # of each call's turn
    size: Size = field(default=Year(1, MIDDLE))
    _fresh: Iterator[int] = field(default_factory=partial(itertools.count, 1))

    def fill(self) -> None:
        """Make the database, once."""
        self.databases.create(self.size)
        for number in range(1, SMALL + 1):
            self._organization(f"small{number}", DAY, days=1)
        self._organization("middle", MIDDLE, days=365)
        self._organization("large", self.large, days=365)
        self.databases.settle(self.size)

    def _organization(self, name: str, events: int, days: int) -> None:
        self.databases.run(self.size, "bell.sql", name=name, events=events, days=days)

    @contextlib.contextmanager
    def cases(self, starter: Starter) -> Iterator[dict[Key, Callable[[], Sample]]]:
        """Start the service, and the one with the list of before; yield what is to be run."""
        everybody = [f"{role}/{read}" for role in ROLES for read in READ]
        self.tokens = self._tokens(
            f"small{number}/{who}" for number in range(1, SMALL + 1) for who in everybody
        )
        victims = self._tokens(f"middle/{number}" for number in range(1, 201))
        with (
            starter.service(self.size) as server,
            starter.service(self.size, program=["bench.before_app"]) as before,
        ):
            cases: dict[Key, Callable[[], Sample]] = {}
            # The two that a bar compares come one after the other: the machine's pace changes.
            for call, role, read, window in itertools.product(CALLS, ROLES, READ, WINDOWS):
                path, body = CALLS[call]
                for name, events in (("middle", MIDDLE), ("large", self.large)):
                    caller = f"{name}/{role}/{read}"
                    asking = partial(self._ask, server, path, caller, {**body, **since(window)})
                    cases[case(call, role, read, window), events] = asking
            bodies: list[tuple[str, Server, str, dict[str, object]]] = [
                (BADGE, server, "systemevent/count", {}),
                (BADGE_BEFORE, before, "systemevent", {"showUnread": True, "take": 1}),
                (LIST, server, "systemevent", {}),
                (LIST_BEFORE, before, "systemevent", {}),
            ]
            for name, contender, path, body in bodies:
                cases[name, ORDINARY] = partial(self._ordinary, contender, path, body)
            cases[ALL, MARKED] = partial(self._mark_all, server)
            cases[IDS, MARKED] = partial(self._mark_ids, server)
            marks = partial(self.load.wrk, server, victims, MARKING)
            cases[ALONE, MARKING] = marks
            cases[BESIDE, MARKING] = partial(self._beside, server, marks)
            yield cases

    def _tokens(self, callers: Iterator[str]) -> Path:
        names = list(callers)
        return write_tokens(self.folder / f"bell-{len(names)}", names, SECRET, "HS256")

    def _token(self, caller: str) -> str:
        return write_tokens(self.folder / "bell", [caller], SECRET, "HS256").read_text().strip()

    def _ask(self, server: Server, path: str, caller: str, body: object) -> Sample:
        """One caller, one request after the other."""
        with connected(server, self._token(caller)) as post:
            post(path, body)
            times = []
            end = time.monotonic() + self.seconds
            while (began := time.monotonic()) < end:
                post(path, body)
                times.append(time.monotonic() - began)
        times.sort()
        p50, p99 = (times[int(len(times) * part)] * 1000 for part in (0.5, 0.99))
        return Sample(len(times) / sum(times), p50, p99)

    def _ordinary(self, server: Server, path: str, body: object) -> Sample:
        file = self.folder / "bell.json"
        file.write_text(json.dumps(body))
        return self.load.same(server, path, self.tokens, file, ORDINARY)

    def _administrator(self) -> str:
        """Who has read nothing yet, another one each time."""
        return self._token(f"large/{next(self._fresh)}")

    def _mark_all(self, server: Server) -> Sample:
        with connected(server, self._administrator()) as post:
            days = 365 * MARKED / self.large
            body = {"from_timestamp": (datetime.now(UTC) - timedelta(days=days)).isoformat()}
            began = time.monotonic()
            post(MARK_ALL, body)
            took = time.monotonic() - began
        return Sample(MARKED / took, took * 1000)

    def _mark_ids(self, server: Server) -> Sample:
        with connected(server, self._administrator()) as post:
            began = time.monotonic()
            for last in range(self.large, self.large - MARKED, -10_000):
                post("systemevent/read", {"ids": list(range(last - 9_999, last + 1))})
            took = time.monotonic() - began
        return Sample(MARKED / took, took * 1000)

    def _beside(self, server: Server, marks: Callable[[], Sample]) -> Sample:
        """Mark single events, while one administrator after another marks all of a year."""
        done = threading.Event()

        def mark_all() -> None:
            while not done.is_set():
                with connected(server, self._administrator()) as post:
                    post(MARK_ALL, since("a year"), allowed=(200, 503))

        marking = threading.Thread(target=mark_all)
        marking.start()
        try:
            return marks()
        finally:
            done.set()
            marking.join()


def since(window: str) -> dict[str, object]:
    """The filter for it; none for a day, which is what a list without a time covers."""
    days = WINDOWS[window]
    moment = datetime.now(UTC) - timedelta(days=days)
    return {"from_timestamp": moment.isoformat()} if days else {}


@contextlib.contextmanager
def connected(server: Server, token: str) -> Iterator[Callable[..., None]]:
    """Yield what posts a body, on one connection, and ends the bench if it is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(path: str, body: object, allowed: tuple[int, ...] = (200,)) -> None:
        connection.request("POST", f"/{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in allowed:
            raise SystemExit(f"{path} {body}: {answer.status} {text.decode()}")

    try:
        yield post
    finally:
        connection.close()
