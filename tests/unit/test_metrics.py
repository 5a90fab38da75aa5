"""What a worker counts, where another one was before it."""

import asyncio
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.admin.board import Board, Place
from service.admin.metrics import Metrics
from service.observing import KeySetFailed, KeySetFetched, Observers
from service.web.request_info import RequestInfo

TOKENS = cast("Any", SimpleNamespace(remembered=3, hits=5, misses=2))
POOLS = cast("Any", SimpleNamespace(named={}))
FETCHED, FAILED = KeySetFetched(1, changed=True), KeySetFailed("host", "reason")


def worker(place: Place, *told: object) -> Metrics:
    """One that begins at a place, and is told something."""
    metrics, observers = Metrics(place, frozenset(), POOLS, TOKENS, ()), Observers()
    metrics.listen(observers)
    for observation in told:
        observers.tell(observation)
    return metrics


def shown(metrics: Metrics) -> Mapping[str, float]:
    """What a scrape of it shows."""
    text, _ = metrics.expose("", database_up=True)
    return {
        sample.name.removeprefix("systemevent_"): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_only_gauges_end_with_a_worker() -> None:
    """The next one counts on; what it has not seen itself, such as a key set, is not shown."""
    board = Board()
    place = board.take()
    first = shown(worker(place, FETCHED, FAILED))
    assert first["key_set_timestamp_seconds"] == pytest.approx(time.time(), abs=60)
    assert first["key_set_failures_total"] == 1
    board.free(place)
    again = shown(worker(board.take(), FAILED))
    assert again["key_set_failures_total"] == 2
    assert "key_set_timestamp_seconds" not in again
    assert again["verified_tokens"] == TOKENS.remembered


def test_what_was_counted_before_the_start_is_not_counted() -> None:
    """A forked process has the numbers of its parent."""
    assert shown(worker(Board(1).take()))["verified_token_hits_total"] == 0


def test_workers_add_up() -> None:
    """Gauges too; but of key sets the oldest counts."""
    board = Board()
    first, second = worker(board.take(), FETCHED), worker(board.take(), FAILED)
    alone = shown(first)["key_set_timestamp_seconds"]
    assert shown(second)["key_set_timestamp_seconds"] == alone
    observers = Observers()
    second.listen(observers)
    observers.tell(FETCHED)
    assert shown(second)["key_set_timestamp_seconds"] == alone
    assert shown(first)["workers"] == 2
    assert shown(second)["verified_tokens"] == 2 * TOKENS.remembered


async def test_a_worker_that_is_told_to_end_loses_nothing() -> None:
    """What it has counted since it last looked is there for the others."""
    board, observers = Board(), Observers()
    ending, other = worker(board.take()), worker(board.take())
    ending.listen(observers)
    async with ending.watch():
        await asyncio.sleep(0)  # its first look
        observers.tell(RequestInfo("id", 0.0, method="GET", path="/", status=404))
    assert shown(other)["requests_total"] == 1
