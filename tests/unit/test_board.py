"""The board: what one process has written another reads, and nothing is lost with its writer."""

import os
import signal
from collections.abc import Callable

from service.admin import board
from service.admin.board import Board, Place, Series

HITS = Series("hits", ("a",))


def in_a_child(work: Callable[[], None]) -> None:
    """Run `work` in a process that is killed after it, and wait for its end."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def add(place: Place, series: Series, value: float, size: int = 1) -> None:
    """Begin, and count."""
    place.begin()
    place.numbers[place.find(series, size)] += value


def read(made: Board) -> list[tuple[bool, dict[Series, list[float]]]]:
    """All that is on a board: whether the worker is there, and its numbers."""
    return [
        (place.is_alive, {series: list(numbers) for series, numbers in place.read()})
        for place in made.used()
    ]


def test_a_killed_worker_leaves_what_it_has_counted() -> None:
    """And the worker that has its place next goes on counting."""
    made = Board(3)
    places = [made.take(), made.take()]
    for number, place in enumerate(places):
        in_a_child(lambda place=place, number=number: add(place, HITS, 1 + number))  # type: ignore[misc]
    assert read(made) == [(True, {HITS: [1]}), (True, {HITS: [2]})]
    made.free(places[0])
    assert read(made) == [(False, {HITS: [1]}), (True, {HITS: [2]})]
    again = made.take()
    assert again is places[0]
    assert read(made)[0] == (False, {HITS: [1]})  # it has not begun
    in_a_child(lambda: add(again, HITS, 10))
    other = Series("hits", ("b",))
    in_a_child(lambda: add(again, other, 5))
    assert read(made) == [(True, {HITS: [11], other: [5]}), (True, {HITS: [2]})]


def test_a_worker_that_starts_hides_no_other() -> None:
    """Its place is empty until it has begun; those after it are read all the same."""
    made = Board(3)
    made.take()
    add(made.take(), HITS, 2)
    assert read(made) == [(False, {}), (True, {HITS: [2]})]


def test_a_series_of_several_numbers() -> None:
    """They are apart from those of other series."""
    place = Board(1).take()
    place.begin()
    wide, narrow = Series("wide"), Series("narrow")
    first = place.find(wide, 3)
    place.numbers[place.find(narrow)] = 7
    place.numbers[first + 2] = 5
    assert dict(place.read()) == {wide: [0, 0, 5], narrow: [7]}


def test_more_workers_than_places() -> None:
    """The last place is shared: something is still counted, and nothing raised."""
    made = Board(2)
    first, second, third = (made.take() for _ in range(3))
    assert first is not second
    assert second is third


def test_a_full_place_takes_no_more_series() -> None:
    """What comes later is counted nowhere, and spoils nothing."""
    place = Board(1).take()
    place.begin()
    kept = [Series("kept", (str(number),)) for number in range(board.VALUES)]
    for series in kept:
        place.numbers[place.find(series)] += 1
    place.numbers[place.find(Series("wide"), board.WIDEST) + board.WIDEST - 1] += 1
    shown = dict(place.read())
    assert 0 < len(shown) < len(kept)
    assert shown == {series: [1] for series in kept[: len(shown)]}

    place = Board(1).take()
    place.begin()
    long = [Series("x" * 200, (str(number),)) for number in range(1000)]
    for series in long:
        place.find(series)
    shown = dict(place.read())
    assert 0 < len(shown) < len(long)
    assert list(shown) == long[: len(shown)]
