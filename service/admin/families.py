"""Each metric: its name, what it says, its labels; and how it is shown to Prometheus.

Names are those that Prometheus' conventions ask for: base units, `_total` for what only grows.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from service.admin.board import Series

PREFIX = "systemevent_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


class Family(msgspec.Struct, frozen=True):
    """A metric. One with buckets, their upper bounds, is a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Callable[[Iterable[float]], float] = math.fsum  # of the workers' numbers

    @property
    def size(self) -> int:
        """How many numbers a series has: a histogram one for each bucket, the last, and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"{name}_total", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, "gauge", text, labels)


def _histogram(name: str, text: str, label: str, buckets: tuple[float, ...]) -> Family:
    return Family(name, "histogram", text, (label,), buckets)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _counter("requests", "Requests answered.", "method", "route", "status"),
        _histogram("request_duration_seconds", "From arrival to answer.", "route", SECONDS),
        _counter("refusals", "Requests refused, by the rule that was broken.", "status", "cause"),
        _histogram("statement_requests", "Requests in one statement.", "kind", SIZES),
        _histogram("statement_ids", "Ids in one statement.", "kind", SIZES),
        _histogram(
            "statement_wait_seconds",
            "From the arrival of the first request in a statement to its start.",
            "kind",
            SECONDS,
        ),
        _histogram("statement_duration_seconds", "Each attempt at a statement.", "kind", SECONDS),
        _counter(
            "statement_failures",
            "Attempts at a statement that failed; what can succeed is tried again.",
            "kind",
            "error",
        ),
        _gauge("queued_requests", "Requests that wait for the next statement.", "kind", "lane"),
        _gauge("database_connections", "Connections, by what they do.", "pool", "state"),
        _gauge("database_connections_max", "Connections that there may be.", "pool"),
        _gauge("database_up", "1 where the database can do what /ready asks of it."),
        Family(
            "replica_used",
            "gauge",
            "1 where lists and counts may be read from the replica.",
            merge=min,
        ),
        Family(
            "replica_lag_seconds",
            "gauge",
            "How far the replica may be behind, up to a second more.",
            merge=max,
        ),
        _counter(
            "replica_reads",
            "Lists and counts, by whether the replica answered, or why the primary did.",
            "outcome",
        ),
        _gauge("verified_tokens", "Verified tokens that are remembered."),
        _counter("verified_token_hits", "Tokens that were remembered."),
        _counter("verified_token_misses", "Tokens that were not, and had to be verified."),
        Family(
            "key_set_timestamp_seconds",
            "gauge",
            "When the key set was last fetched, by the worker whose fetch is the oldest.",
            merge=min,
        ),
        _counter("key_set_failures", "Fetches of the key set that yielded no keys."),
        _counter("log_lines_dropped", "Lines of the log that nobody read in time."),
        _gauge("workers", "Processes that answer."),
        _gauge("build_info", "Always 1.", "version", "python"),
    )
}


def expose(found: Mapping[Series, Sequence[Sequence[float]]], accept: str) -> tuple[bytes, str]:
    """Write series, each with the numbers of some workers, as text; and say of which type it is.

    `accept` is the header of who asks.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Collected(found)), content_type


class _Collected:
    """What an encoder asks for."""

    def __init__(self, found: Mapping[Series, Sequence[Sequence[float]]]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES.values():
            make = {
                "counter": CounterMetricFamily,
                "gauge": GaugeMetricFamily,
                "histogram": HistogramMetricFamily,
            }[family.kind]
            shown = make(PREFIX + family.name, family.text, labels=family.labels)
            for series, workers in self._found.items():
                if series.name == family.name:
                    _add(shown, family, series.labels, workers)
            yield shown


def _add(
    shown: Metric, family: Family, labels: Sequence[str], workers: Sequence[Sequence[float]]
) -> None:
    """Add a series, once its numbers are merged."""
    columns = zip(*workers, strict=True)
    numbers = [family.merge(it) for column in columns if (it := _known(column))]
    if not numbers:
        return
    if isinstance(shown, HistogramMetricFamily):
        *counts, total = numbers
        bounds = [*map(str, map(float, family.buckets)), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
        shown.add_metric(labels, buckets, total)
    elif isinstance(shown, CounterMetricFamily | GaugeMetricFamily):
        shown.add_metric(labels, numbers[0])


def _known(numbers: Iterable[float]) -> list[float]:
    return [number for number in numbers if not math.isnan(number)]
