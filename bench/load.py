"""Puts load on a contender for a few seconds, and says what came of it."""

import math
import random
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import jwt
import psutil
from tqdm import tqdm

from bench.postgres import BIN, HERE, Databases, Size
from bench.servers import Server

BADGE = 0  # ids in a request that asks for the badge and marks nothing
Key = tuple[str, int]  # a contender, and what varies: connections, ids, read rows


@dataclass(frozen=True)
class Sample:
    """One round, or the medians of several; NaN is not measured."""

    rate: float  # answers a second
    p50: float = math.nan  # milliseconds
    p99: float = math.nan
    cpu: float = math.nan  # seconds for 1,000 requests: the contender's processes
    database_cpu: float = math.nan  # the same, PostgreSQL's
    load_cpu: float = math.nan  # the same, the load generator's
    rss: float = math.nan  # MB of a worker under this load
    pss: float = math.nan
    requests: float = 0.0
    others: float = math.nan  # cores that were busy with neither load nor contender nor PostgreSQL


def median(samples: Sequence[Sample]) -> Sample:
    """Of each figure by itself."""
    return Sample(
        *(statistics.median(values) for values in zip(*map(astuple, samples), strict=True))
    )


def interleave(
    cases: Mapping[Key, Callable[[], Sample]], rounds: int, title: str
) -> dict[Key, Sample]:
    """Run all cases once in each round, each round from another start, and return the medians.

    The first round is not counted: caches are cold, and after a checkpoint PostgreSQL writes each
    page whole when it is first touched.
    """
    samples: dict[Key, list[Sample]] = {key: [] for key in cases}
    keys = list(cases)
    with tqdm(total=(rounds + 1) * len(keys), desc=title, unit=" runs") as progress:
        for number in range(rounds + 1):
            start = number * len(keys) // (rounds + 1)
            for key in keys[start:] + keys[:start]:
                sample = cases[key]()
                if number:
                    samples[key].append(sample)
                progress.update()
    return {key: median(of_key) for key, of_key in samples.items()}


def write_tokens(file: Path, callers: Sequence[str], key: object, algorithm: str) -> Path:
    """Sign a token for each caller; one a line, in random order."""
    claims = {"exp": int(time.time()) + 86_400}
    tokens = [jwt.encode({"userId": user, **claims}, key, algorithm) for user in callers]  # type: ignore[arg-type]
    random.shuffle(tokens)
    file.write_text("\n".join(tokens) + "\n")
    return file


@dataclass(frozen=True)
class Load:
    """What puts load on contenders."""

    databases: Databases
    seconds: int

    def wrk(self, server: Server, tokens: Path, connections: int, ids: int = 1) -> Sample:
        """Send requests as fast as they are answered. Ends the bench if one is not answered 200."""
        arguments = [str(server.size.events), str(ids), str(random.randrange(2**31))]
        return self._wrk(server, "wrk.lua", "", connections, tokens, arguments)

    def same(self, server: Server, path: str, tokens: Path, body: Path, connections: int) -> Sample:
        """Send the same body again and again."""
        return self._wrk(server, "attack.lua", path, connections, tokens, [str(body)])

    def _wrk(
        self,
        server: Server,
        script: str,
        path: str,
        connections: int,
        tokens: Path,
        arguments: Sequence[str],
    ) -> Sample:
        threads = min(2, connections)
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{self.seconds}s"]
        command += ["--timeout", "30s", "-s", str(HERE / script)]
        command += [f"http://127.0.0.1:{server.port}/{path}", "--", str(tokens), *arguments]
        clock = _Clock(self.databases, server)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            time.sleep(self.seconds * 0.75)
            rss, pss = server.memory()
            output, _ = process.communicate(timeout=self.seconds + 60)
        cpu, database_cpu, load_cpu, others = clock.read()
        requests, duration, failures, p50, p99 = map(int, output.splitlines()[-1].split())
        if failures or not requests or process.returncode:
            raise SystemExit(
                f"{failures} requests failed: the figures would be worthless\n{output}"
            )
        thousands = requests / 1000
        return Sample(
            requests / duration * 1e6,
            p50 / 1000,
            p99 / 1000,
            cpu / thousands,
            database_cpu / thousands,
            load_cpu / thousands,
            rss,
            pss,
            requests,
            others,
        )

    def pgbench(self, size: Size, clients: int) -> Sample:
        """Run mark_one.pgbench on so many connections."""
        command = [str(BIN / "pgbench"), "-n", "-M", "prepared", "-c", str(clients)]
        command += ["-j", str(min(2, clients)), "-T", str(self.seconds)]
        for name in ("organizations", "members", "events"):
            command += ["-D", f"{name}={getattr(size, name)}"]
        command += ["-f", str(HERE / "mark_one.pgbench"), self.databases.url(size)]
        clock = _Clock(self.databases)
        output = subprocess.check_output(command, text=True)
        time.sleep(0.5)  # the backends end; their CPU time is known when they have
        _, cpu, load_cpu, others = clock.read()
        done = int(re.search(r"actually processed: (\d+)", output)[1])  # type: ignore[index]
        rate = float(re.search(r"tps = ([\d.]+)", output)[1])  # type: ignore[index]
        return Sample(
            rate,
            database_cpu=cpu / done * 1000,
            load_cpu=load_cpu / done * 1000,
            requests=done,
            others=others,
        )


class _Clock:
    """Tells who has used how much CPU since it was made."""

    def __init__(self, databases: Databases, server: Server | None = None) -> None:
        self._databases = databases
        self._server = server
        self._start = self._now()

    def _now(self) -> tuple[float, ...]:
        """Seconds: contender, PostgreSQL, load generators that have ended, machine, wall clock."""
        machine = psutil.cpu_times()
        load = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            self._server.cpu() if self._server else 0.0,
            self._databases.cpu(),
            load.ru_utime + load.ru_stime,
            sum(machine) - machine.idle - getattr(machine, "iowait", 0.0),
            time.monotonic(),
        )

    def read(self) -> tuple[float, float, float, float]:
        """CPU seconds of contender, PostgreSQL and load, and the cores that others kept busy."""
        spent = [now - then for now, then in zip(self._now(), self._start, strict=True)]
        ours, database, load, machine, passed = spent
        return ours, database, load, max(0.0, machine - ours - database - load) / passed


def need_wrk() -> None:
    """End the bench where there is no wrk."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed (Debian: apt install wrk)")
