"""An hour of mixed traffic, after which the service has to be as small as before.

Good, bad and broken-off requests come all the time. Memory, descriptors, tasks and connections to
PostgreSQL are sampled; the last third of the samples may not be above the second (the first is for
caches to fill), and when all clients are gone little may be left. The exit status is 1 where that,
or an answer, is not as it has to be.
"""

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil
from tqdm import tqdm

from bench import postgres, watched
from bench.postgres import Databases, Size
from bench.servers import Server, Starter
from bench.traffic import Traffic

SIZE = Size(100, 1000)
CLIENTS = (12, 6, 6)  # good, bad, broken off
SAMPLES = 60
THIRD = SAMPLES // 3
REST = 90.0  # seconds, at most, until idle connections to PostgreSQL are closed
SHOWN = 20  # samples in the table


@dataclass(frozen=True)
class Sample:
    """What the service has at a moment."""

    memory: float  # MB, resident
    descriptors: int
    tasks: int
    connections: int  # to PostgreSQL


# By how much a median may be above the one before it, or what is left above what there was: the
# traffic is drawn at random, and memory comes in pages. At rest, each of the four kinds of
# connections keeps one.
SLACK = Sample(memory=4.0, descriptors=8, tasks=8, connections=4)
AT_REST = Sample(memory=float("inf"), descriptors=8, tasks=2, connections=4)


def _sample(server: Server, databases: Databases) -> Sample:
    process = psutil.Process(server.process.pid)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(watched.address(process.pid))
        tasks = int(asking.recv(100))
    return Sample(
        process.memory_info().rss / 2**20,
        process.num_fds(),
        tasks,
        int(databases.run(server.size, "connections.sql")),
    )


def grown(before: Sample, after: Sample, slack: Sample) -> list[str]:
    """Say which figures are larger than before, by more than the slack."""
    return [
        f"{field.name}: {now:,.0f} after {then:,.0f}"
        for field, then, now, more in zip(
            fields(Sample), astuple(before), astuple(after), astuple(slack), strict=True
        )
        if now > then + more
    ]


def judge(samples: Sequence[Sample]) -> list[str]:
    """Say what has grown from the second third of the samples to the last."""
    second, last = (
        Sample(*(statistics.median(values) for values in zip(*map(astuple, some), strict=True)))
        for some in (samples[THIRD : 2 * THIRD], samples[2 * THIRD :])
    )
    return grown(second, last, SLACK)


def table(samples: Sequence[Sample], rest: Sequence[Sample], seconds: float) -> str:
    """All of it, for people."""
    rows = [("at first", rest[0])]
    rows += [
        (f"{(number + 1) * seconds / len(samples) / 60:.1f} min", sample)
        for number, sample in enumerate(samples)
        if (number + 1) % (len(samples) // SHOWN) == 0
    ]
    rows.append(("at rest", rest[1]))
    lines = ["| | MB | descriptors | tasks | connections |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {name} | {it.memory:.1f} | {it.descriptors} | {it.tasks} | {it.connections} |"
        for name, it in rows
    ]
    return "\n".join(lines)


async def _soak(
    server: Server, databases: Databases, traffic: Traffic, seconds: float
) -> list[str]:
    """Let the traffic run, print what comes of it, and say what is wrong."""
    before, samples = _sample(server, databases), []
    running = asyncio.create_task(traffic.run(*CLIENTS))
    start = time.monotonic()
    for number in tqdm(range(SAMPLES), desc="soak", unit=" samples"):
        due = start + (number + 1) * seconds / SAMPLES
        await asyncio.wait([running], timeout=due - time.monotonic())
        if running.done():
            running.result()
        samples.append(await asyncio.to_thread(_sample, server, databases))
    running.cancel()
    await asyncio.wait([running])
    end = time.monotonic() + REST
    while (after := _sample(server, databases)) and grown(before, after, AT_REST):
        if time.monotonic() > end:
            break
        await asyncio.sleep(1)
    print(table(samples, (before, after), seconds))
    return [
        *(f"grows under load: {what}" for what in judge(samples)),
        *(f"left at rest: {what}" for what in grown(before, after, AT_REST)),
        *(["too many answers were 503"] if traffic.refused > traffic.answers.total() / 100 else ()),
        *(f"wrong answer: {what}, {count:,} times" for what, count in traffic.wrong.items()),
    ]


def main(argv: Sequence[str]) -> int:
    """Soak for as long as is asked for; the exit status."""
    parser = argparse.ArgumentParser("python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    seconds = parser.parse_args(argv).minutes * 60
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        databases = stack.enter_context(postgres.start(folder))
        databases.load(SIZE)
        starter = Starter(databases, folder)
        server = stack.enter_context(starter.service(SIZE, program=("bench.watched", "serve")))
        traffic = Traffic(server.port, databases.callers(SIZE), SIZE.events)
        wrong = asyncio.run(_soak(server, databases, traffic, seconds))
    print(
        f"{traffic.answers.total():,} answers, {traffic.refused:,} of them 503, and "
        f"{traffic.broken.total():,} requests broken off, in {seconds:.0f} s"
    )
    print(*(wrong or ["flat"]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
