"""What one caller, or a lock, may do to others: run beside a victim, whose figures tell."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.load import write_tokens
from bench.postgres import HERE, Databases
from bench.servers import SECRET, Server

MARK, LIST = "systemevent/read", "systemevent"
LEAD = 1  # seconds before the victim starts, and after it has ended


@dataclass(frozen=True)
class Attack:
    """A body that is sent again and again."""

    name: str
    callers: int
    connections: int
    path: str = MARK
    locks: bool = False  # the body asks for a row that somebody else has locked


FLOATS = Attack("bodies of 320 KB", 1, 16)
ATTACKS = (
    Attack("a locked row", 1, 4, locks=True),
    Attack("40 locked rows", 40, 40, locks=True),
    Attack("10,000 unknown ids, one token", 1, 64),
    FLOATS,
    Attack("lists of a year, one caller", 1, 20, LIST),
)


def _body(attack: Attack) -> str:
    if attack.locks:
        return '{"id":1}'
    if attack.path == LIST:
        year = datetime.now(UTC) - timedelta(days=365)
        return json.dumps({"from_timestamp": year.isoformat(), "take": 100})
    if attack is FLOATS:
        return json.dumps({"ids": [5.0] * 60_000})
    return json.dumps({"ids": list(range(1_000_001, 1_010_001))})


@contextlib.contextmanager
def under(
    attack: Attack, server: Server, databases: Databases, folder: Path, seconds: int
) -> Iterator[None]:
    """Attack while the context lasts, which takes `seconds`; what is answered does not matter."""
    callers = databases.callers(server.size)[-attack.callers :]  # the victims are the first ones
    tokens = write_tokens(folder / "attack.tokens", callers, SECRET, "HS256")
    body = folder / "attack.json"
    body.write_text(_body(attack))
    lasting = seconds + 2 * LEAD
    command = ["wrk", "-t1", f"-c{attack.connections}", f"-d{lasting}s", "--timeout", "30s"]
    command += ["-s", str(HERE / "attack.lua"), f"http://127.0.0.1:{server.port}/{attack.path}"]
    command += ["--", str(tokens), str(body)]
    locking = threading.Thread(
        target=databases.run,
        args=(server.size, "lock.sql"),
        kwargs={"users": ",".join(callers), "seconds": lasting},
    )
    if attack.locks:
        locking.start()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL):
        time.sleep(LEAD)
        yield
    if attack.locks:
        locking.join()
    time.sleep(LEAD)
