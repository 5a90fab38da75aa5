"""The command line: measure, print the bars, write results.md and results.svg."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench import plot, postgres, report
from bench.load import need_wrk
from bench.phases import CORES, QUICK, Bench, Results, Scale
from bench.report import Bar
from bench.servers import Starter


def _no_bars(_: Results) -> Iterator[Bar]:
    yield from ()


# phase -> its title in the results, what varies in it, the bars that it decides
PHASES: dict[str, tuple[str, str, Callable[[Results], Iterator[Bar]]]] = {
    "contenders": (
        "Contenders (0 connections: idle; pgbench: clients)",
        "connections",
        report.contender_bars,
    ),
    "workers": ("Group commit, by workers", "connections", _no_bars),
    "tokens": ("Tokens, one worker", "connections", _no_bars),
    "in_flight": ("Statements in flight, one worker", "connections", _no_bars),
    "growth": ("Growth, one worker", "events and read rows", report.growth_bars),
    "neighbours": (
        "A victim's marks, by what others do, one worker",
        "connections",
        report.neighbour_bars,
    ),
    "bell": ("The bell, one worker", "events, or connections", report.bell_bars),
    "ids": ("Ids in a request, one worker, 8 connections", "ids", _no_bars),
}


def main(argv: Sequence[str]) -> None:
    """Run the phases that are asked for."""
    arguments = _parse(argv)
    scale: Scale = QUICK if arguments.quick else Scale()
    for name in ("seconds", "rounds", "in_flight", "workers"):
        if value := getattr(arguments, name):
            scale = replace(scale, **{name: value})
    need_wrk()
    bars: list[Bar] = []
    sections: list[str] = []
    measured: list[Results] = []
    drawing = ""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with postgres.start(folder) as server:
            for size in scale.sizes:
                server.load(size)
            server.run(scale.sizes[-1], "segments.sql")
            bench = Bench(scale, server, Starter(server, folder), folder)
            plans = report.plans_table(list(bench.plans()))
            for phase in arguments.only:
                results = getattr(bench, phase)()
                title, varies, decides = PHASES[phase]
                measured.append(results)
                bars += decides(results)
                table = report.bell_table if phase == "bell" else report.table
                if phase == "workers" and max(scale.workers) > CORES:
                    title += f" (this machine has {CORES} cores: not measured with more)"
                sections.append(f"## {title}\n\n{table(results, varies)}")
                if phase == "contenders":
                    sections.insert(0, report.budget(results))
                    drawing = plot.svg(results)
            sections.append(f"## Plans, {scale.sizes[-1].rows:,} events and read rows\n\n{plans}")
    command = shlex.join(["python", "-m", "bench", *argv])
    text = (
        f"# Results of the bench\n\n`{command}`: medians of {scale.rounds} interleaved rounds of "
        f"{scale.seconds} s each.\n{report.machine()}\n{report.others(measured)}\n\n"
        + "![throughput and latency](results.svg)\n\n" * bool(drawing)
        + "\n\n".join([report.bars_table(bars), *sections])
        + "\n"
    )
    print(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.md").write_text(text)
    if drawing:
        (arguments.output / "results.svg").write_text(drawing)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small data, one short round")
    parser.add_argument("--seconds", type=int, help="of each run")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--in-flight", type=_numbers, metavar="N,N", help="statements in flight")
    parser.add_argument("--workers", type=_numbers, metavar="N,N", help="numbers of workers")
    usual = [
        phase for phase in PHASES if phase != "workers"
    ]  # for who asks: make bench WORKERS=...
    parser.add_argument("--only", nargs="+", choices=PHASES, default=usual, metavar="PHASE")
    parser.add_argument("--output", type=Path, default=postgres.HERE, help="folder of the results")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
