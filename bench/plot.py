"""Draws bench/results.svg by hand: throughput by connections, and p99 at 64."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from bench.phases import EACH, FASTAPI, GROUP, IDLE, Results, contender
from bench.report import best_pgbench

WIDTH, HEIGHT = 880, 400
TOP, BOTTOM, LEFT, RIGHT = 64, 344, 64, 400  # of the lines; the bars stand to the right
BARS, BARS_END = 650, 830
SERIES = (
    (contender(GROUP, 2), "a"),
    (contender(GROUP, 1), "b"),
    (contender(EACH, 1), "c"),
    (contender(FASTAPI, 1), "d"),
)
STYLE = """
text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px } .dim { fill: #59636e }
.grid { stroke: #d1d9e0 } .bare { stroke: #59636e; stroke-dasharray: 6 4; stroke-width: 1.5 }
.a, .b, .c, .d { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round }
.a { stroke: #0969da } .b { stroke: #1a7f37 } .c { stroke: #bc4c00 } .d { stroke: #8250df }
circle.a, rect.a { fill: #0969da } circle.b, rect.b { fill: #1a7f37 }
circle.c, rect.c { fill: #bc4c00 } circle.d, rect.d { fill: #8250df }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .dim { fill: #9198a1 } .grid { stroke: #3d444d } .bare { stroke: #9198a1 }
.a { stroke: #4493f8 } .b { stroke: #3fb950 } .c { stroke: #f0883e } .d { stroke: #ab7df8 }
circle.a, rect.a { fill: #4493f8 } circle.b, rect.b { fill: #3fb950 }
circle.c, rect.c { fill: #f0883e } circle.d, rect.d { fill: #ab7df8 }
}
"""


def svg(results: Results) -> str:
    """The plot, for light and dark pages."""
    body = "\n".join([*_throughput(results), *_latency(results)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Requests a second by connections, and 99th percentile of latency">'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{text}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _throughput(results: Results) -> Iterator[str]:
    clients, bare = best_pgbench(results)
    measured = {number for name, number in results if name == SERIES[0][0]}
    connections = sorted(measured - {IDLE})
    across = dict(zip(connections, _spread(LEFT + 16, RIGHT - 16, len(connections)), strict=True))
    highest = max(bare.rate, *(results[name, n].rate for name, _ in SERIES for n in connections))
    step = _step(highest)
    top = math.ceil(highest / step) * step

    def height(rate: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * rate / top

    yield _text(16, 28, "Requests a second, by connections", "title")
    for rate in range(0, top + 1, step):
        yield _line("grid", LEFT, height(rate), RIGHT, height(rate))
        yield _text(LEFT - 8, height(rate) + 4, f"{rate:,}", "dim", "end")
    for number, x in across.items():
        yield _text(x, BOTTOM + 22, f"{number:,}", "dim", "middle")
    yield _line("bare", LEFT, height(bare.rate), RIGHT, height(bare.rate))
    labels = [(height(bare.rate), f"pgbench, {clients} clients", "dim")]
    for name, kind in SERIES:
        points = [(across[n], height(results[name, n].rate)) for n in connections]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="{kind}" points="{path}"/>'
        yield from (f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        labels.append((points[-1][1], name, ""))
    labels.sort()
    for y, (_, text, kind) in zip(_apart([y for y, *_ in labels]), labels, strict=True):
        yield _text(RIGHT + 6, y + 4, text, kind)


def _latency(results: Results) -> Iterator[str]:
    yield _text(BARS, 28, "p99 at 64 connections, ms", "title")
    longest = max(results[name, 64].p99 for name, _ in SERIES)
    for (name, kind), y in zip(SERIES, _spread(TOP + 24, BOTTOM - 24, len(SERIES)), strict=True):
        p99 = results[name, 64].p99
        width = (BARS_END - BARS) * p99 / longest
        yield _text(BARS, y - 12, name)
        place = f'x="{BARS}" y="{y - 4:.1f}" width="{width:.1f}"'
        yield f'<rect class="{kind}" {place} height="14" rx="2"/>'
        yield _text(BARS + width + 8, y + 8, f"{p99:.1f}")


def _spread(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * n / (count - 1) for n in range(count)]


def _step(highest: float) -> int:
    """A round distance of grid lines, four to eight of them."""
    unit: int = 10 ** math.floor(math.log10(highest))
    return max(
        1, round(unit / 5 if highest < 2 * unit else unit if highest > 4 * unit else unit / 2)
    )


def _apart(heights: Sequence[float], least: float = 17) -> list[float]:
    """Move labels, in order from the top, so that none covers another."""
    moved = list(heights)
    for _ in range(100):
        for above, below in pairwise(range(len(moved))):
            if (lack := least - (moved[below] - moved[above])) > 0:
                moved[above] -= lack / 2
                moved[below] += lack / 2
    return moved
