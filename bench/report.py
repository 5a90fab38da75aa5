"""Turns figures into bench/results.md: the bars, the tables, the machine."""

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import psutil

from bench import bell
from bench.attacks import ATTACKS
from bench.load import Sample
from bench.phases import (
    AIOHTTP,
    BADGES,
    EACH,
    FASTAPI,
    GROUP,
    IDLE,
    MARKS,
    PGBENCH,
    QUIET,
    VICTIM,
    Results,
    contender,
)
from bench.postgres import BIN

LIBRARIES = ("aiohttp", "asyncpg", "uvloop", "PyJWT", "gunicorn", "fastapi", "uvicorn", "httptools")


@dataclass(frozen=True)
class Bar:
    """A figure of this run, nearly always a ratio, and what it has to be."""

    name: str
    wanted: str
    value: float
    met: bool

    def __str__(self) -> str:
        """One line of the table."""
        verdict = "met" if self.met else "**not met**"
        return f"| {self.name} | {self.wanted} | {self.value:.2f} | {verdict} |"


def _at_least(limit: float, name: str, value: float) -> Bar:
    return Bar(name, f"at least {limit:g}", value, value >= limit)


def _at_most(limit: float, name: str, value: float) -> Bar:
    return Bar(name, f"at most {limit:g}", value, value <= limit)


def best_pgbench(results: Results) -> tuple[int, Sample]:
    """The number of clients at which pgbench does most, and what it does."""
    of_pgbench = [(number, sample) for (name, number), sample in results.items() if name == PGBENCH]
    return max(of_pgbench, key=lambda item: item[1].rate)


def contender_bars(results: Results) -> Iterator[Bar]:
    """The bars that the contenders decide."""
    bare = best_pgbench(results)[1].rate
    for workers, limit in ((2, 1.5), (1, 1.0)):
        rate = results[contender(GROUP, workers), 64].rate
        yield _at_least(limit, f"requests/s, {contender(GROUP, workers)} / pgbench", rate / bare)
    for workers in (1, 2):
        ours = results[contender(GROUP, workers), 64]
        each = results[contender(EACH, workers), 64]
        fastapi = results[contender(FASTAPI, workers), 64]
        case = f"{workers} worker{'s' * (workers > 1)} each"
        yield _at_least(4, f"requests/s, group commit / {EACH}, {case}", ours.rate / each.rate)
        yield _at_least(5, f"requests/s, group commit / FastAPI, {case}", ours.rate / fastapi.rate)
        yield _at_most(1, f"p99, group commit / {EACH}, {case}", ours.p99 / each.p99)
    one = contender(GROUP, 1)
    alone = results[one, 1].p50 / results[contender(EACH, 1), 1].p50
    yield _at_most(1.1, f"p50 at 1 connection, group commit / {EACH}", alone)
    for workers in (1, 2):
        name = contender(GROUP, workers)
        ratio = results[name, 512].rate / results[name, 64].rate
        yield _at_least(0.9, f"requests/s at 512 / at 64 connections, {name}", ratio)
    yield _at_most(64, "MB (RSS) of a worker, idle", results[one, IDLE].rss)
    yield _at_most(96, "MB (RSS) of a worker, 512 connections busy", results[one, 512].rss)


def budget(results: Results) -> str:
    """What stands in the way of the first bars: the CPU time that a request may take, and takes."""
    bare = best_pgbench(results)[1]
    one, two = (results[contender(GROUP, workers), 64] for workers in (1, 2))
    each, alone = results[contender(EACH, 1), 64], results[contender(AIOHTTP, 1), 64]
    cores = os.cpu_count() or 1
    may = [cores / rate * 1e6 for rate in (1.5 * bare.rate, 4 * each.rate)]
    parts = (alone.cpu, one.cpu - alone.cpu, one.database_cpu, one.load_cpu)
    return (
        f"What limits these, in microseconds of CPU time for a request, on all {cores} cores "
        f"together: 1.5 x pgbench leaves {may[0]:.0f}, 4 x a statement per request {may[1]:.0f}. "
        "At 64 connections, one worker takes {:.0f} (aiohttp alone {:.0f}, what the service adds "
        "{:.0f}, PostgreSQL {:.0f}, wrk {:.0f}) ".format(_us(one), *(part * 1000 for part in parts))
        + f"and keeps {one.rate * _us(one) / 1e6:.1f} cores busy; two take {_us(two):.0f}, their "
        f"batches being smaller, and keep {two.rate * _us(two) / 1e6:.1f} busy. A statement "
        f"per request takes {_us(each):.0f}; pgbench, with neither HTTP nor token, "
        f"{(bare.database_cpu + bare.load_cpu) * 1000:.0f}."
    )


def _us(sample: Sample) -> float:
    """CPU microseconds of one request: contender, PostgreSQL and load generator."""
    return (sample.cpu + sample.database_cpu + sample.load_cpu) * 1000


def growth_bars(results: Results) -> Iterator[Bar]:
    """The bars that the number of rows decides."""
    rows = sorted({number for _, number in results})
    few, many = rows[0], rows[-1]
    span = f"{many:,} / {few:,} rows"
    cost = results[MARKS, few].rate / results[MARKS, many].rate
    yield _at_most(1.2, f"cost of a mark, {span}", cost)
    yield _at_most(
        1.2, f"p99 of the badge, {span}", results[BADGES, many].p99 / results[BADGES, few].p99
    )


def neighbour_bars(results: Results) -> Iterator[Bar]:
    """The bars that the attacks decide."""
    quiet = results[QUIET, VICTIM].rate
    for attack in ATTACKS:
        ratio = results[attack.name, VICTIM].rate / quiet
        limit = 0.5 if attack.locks else 0.25
        yield _at_least(limit, f"requests/s of a victim, {attack.name} / {QUIET}", ratio)


def bell_bars(results: Results) -> Iterator[Bar]:
    """The bars that the bell decides; each the worst of its cases."""
    large = max(number for name, number in results if name.startswith("count"))

    def worst(over: Callable[[str, str, str], float]) -> float:
        # A page of the unread that finds none has looked at all that it may; see the table.
        calls = ("count", "first page")
        return max(over(*which) for which in product(calls, bell.ROLES, bell.READ))

    def p50(events: int, call: str, role: str, read: str) -> float:
        return results[bell.case(call, role, read, "a year"), events].p50

    by_size = worst(lambda *which: p50(large, *which) / p50(bell.MIDDLE, *which))
    yield _at_most(1.5, f"p50 of a count or page, {large:,} / {bell.MIDDLE:,} events", by_size)
    by_read = worst(
        lambda call, role, _: p50(large, call, role, "all") / p50(large, call, role, "nothing")
    )
    yield _at_most(2, "p50 of a count or page, all / nothing read", by_read)
    rate = {name: sample.rate for (name, _), sample in results.items()}
    badge = rate[bell.BADGE] / rate[bell.BADGE_BEFORE]
    yield _at_least(1, f"requests/s, {bell.BADGE} / {bell.BADGE_BEFORE}", badge)
    cost = rate[bell.LIST_BEFORE] / rate[bell.LIST]
    yield _at_most(1.1, f"cost, {bell.LIST} / {bell.LIST_BEFORE}", cost)
    yield _at_least(1, f"events/s, {bell.ALL} / {bell.IDS}", rate[bell.ALL] / rate[bell.IDS])
    ratio = rate[bell.BESIDE] / rate[bell.ALONE]
    yield _at_least(0.8, f"requests/s, {bell.BESIDE} / {bell.ALONE}", ratio)


def bell_table(results: Results, varies: str) -> str:
    """What one caller waits for, by events and window; then what was measured under load."""
    sizes = sorted({number for name, number in results if name.startswith("count")})
    columns = [(events, window) for events in sizes for window in bell.WINDOWS]
    heads = [f"{events:,} in a year, {window}" for events, window in columns]
    lines = ["| p50 ms of | " + " | ".join(heads) + " |", "|---" + "|--:" * len(heads) + "|"]
    asked = set()
    for call, role, read in product(bell.CALLS, bell.ROLES, bell.READ):
        keys = [(bell.case(call, role, read, window), events) for events, window in columns]
        cells = [f"{results[key].p50:.2f}" for key in keys]
        lines.append(f"| {call}, {bell.ROLES[role]}, {read} read | " + " | ".join(cells) + " |")
        asked.update(keys)
    load = {key: sample for key, sample in results.items() if key not in asked}
    return "\n".join(lines) + "\n\n" + table(load, varies)


def others(all_results: Sequence[Results]) -> str:
    """How much the machine had to do beside the bench."""
    cores = [sample.others for results in all_results for sample in results.values()]
    known = sorted(value for value in cores if not math.isnan(value))
    middle, most = known[len(known) // 2], known[-1]
    return f"Other processes kept {middle:.1f} cores busy meanwhile (at most {most:.1f})."


def bars_table(bars: Sequence[Bar]) -> str:
    """All bars."""
    return "\n".join(["| bar | wanted | measured | |", "|---|---|--:|---|", *map(str, bars)])


def table(results: Results, varies: str) -> str:
    """All figures of a phase; `varies` names the second part of the keys."""
    heads = (
        f"contender|{varies}|requests/s|p50 ms|p99 ms|CPU s / 1,000|PostgreSQL's|load's|"
        "RSS MB|PSS MB"
    ).split("|")
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for (name, number), sample in results.items():
        cells = [
            "" if math.isnan(value) else f"{value:,.{places}f}"
            for value, places in zip(astuple(sample), (0, 2, 2, 3, 3, 3, 0, 0), strict=False)
        ]
        lines.append("| " + " | ".join([name, f"{number:,}", *cells]) + " |")
    return "\n".join(lines)


def plans_table(plans: Sequence[tuple[str, float, int]]) -> str:
    """How the statements were planned."""
    rows = [f"| {name} | {took:.1f} | {discarded:,} |" for name, took, discarded in plans]
    return "\n".join(["| statement | ms | rows discarded |", "|---|--:|--:|", *rows])


def machine() -> str:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(": ")[2]
            break
    memory = psutil.virtual_memory().total / 2**30
    postgres = subprocess.check_output([BIN / "postgres", "--version"], text=True).split()[-1]
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()[
        1
    ]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, {platform.system()}; load generator, "
        f"service and database share them. Python {platform.python_version()}, {libraries}, "
        f"PostgreSQL {postgres}, wrk {wrk.split('-')[0]}."
    )
