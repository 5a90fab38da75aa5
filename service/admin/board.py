"""Numbers that the workers of a service write down, and any of them can read.

A scrape reaches one worker and asks for all of them. So the numbers are in memory that the workers
share, since they are forked after it was made: no file, no folder, no lock, and what a worker has
counted is still there when it is killed. Each has a place of its own, which nobody else writes to;
a place is used again when its worker is gone, and counting goes on where that one has ended.
"""

import mmap
from collections.abc import Iterator, Sequence

import msgspec

PLACES = 256  # 64 workers, and those before them that still finish their requests, three times over
VALUES, NAMES = 2048, 49_152  # numbers, and bytes that say what they are, of one place
MARKED = 2**18  # moments at which callers have marked, see web/marked.py; 2 MB where all are used
WIDEST = 32  # numbers of one series
# The first numbers of a place are its own.
_STATE, _END, _NAMED, _NOWHERE = range(4)
_NEVER, _GONE, _ALIVE = 0.0, 1.0, 2.0


class Series(msgspec.Struct, array_like=True, frozen=True):
    """A metric, with values for its labels."""

    name: str
    labels: tuple[str, ...] = ()


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    series: Series
    first: int
    size: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Entry).decode_lines


class Place:
    """The numbers of one worker."""

    def __init__(self, board: "Board", memory: memoryview) -> None:
        """Keep them in `memory`."""
        self.board = board
        self.numbers = memory[: VALUES * 8].cast("d")
        self._names = memory[VALUES * 8 :]
        self._known: dict[Series, int] = {}

    def begin(self) -> None:
        """Go on with what the worker before has counted; until then, the place is nobody's."""
        self._known = {entry.series: entry.first for entry in self._entries()}
        self.numbers[_STATE] = _ALIVE
        self.numbers[_END] = max(self.numbers[_END], _NOWHERE + WIDEST)

    def find(self, series: Series, size: int = 1) -> int:
        """Return the index of the first of a series' `size` numbers, which are 0 if it is new.

        Where the place is full, it is one of numbers that nobody reads.
        """
        if series not in self._known:
            first, start = int(self.numbers[_END]), int(self.numbers[_NAMED])
            line = _encode(_Entry(series, first, size)) + b"\n"
            if first + size > VALUES or start + len(line) > NAMES:
                return _NOWHERE
            self._known[series] = first
            self._names[start : start + len(line)] = line
            self.numbers[_END] = first + size
            self.numbers[_NAMED] = start + len(line)  # last: from now on it is read
        return self._known[series]

    def read(self) -> Iterator[tuple[Series, Sequence[float]]]:
        """Yield each series with its numbers."""
        for entry in self._entries():
            yield entry.series, self.numbers[entry.first : entry.first + entry.size].tolist()

    def _entries(self) -> Sequence[_Entry]:
        return _decode(self._names[: int(self.numbers[_NAMED])])

    @property
    def is_alive(self) -> bool:
        """Whether a worker is there."""
        return self.numbers[_STATE] == _ALIVE


class Board:
    """The places of all workers. The process that starts them takes and frees places."""

    def __init__(self, places: int = PLACES) -> None:
        """Make it, before the first worker is forked; memory is used when it is written to."""
        size = VALUES * 8 + NAMES
        memory = memoryview(mmap.mmap(-1, places * size))
        self._places = [Place(self, memory[n * size : (n + 1) * size]) for n in range(places)]
        self._taken: set[Place] = set()
        self.marked = memoryview(mmap.mmap(-1, MARKED * 8)).cast("d")  # see web/marked.py

    def take(self) -> Place:
        """Give the next worker a place; the last one is shared where there is none left."""
        place = next((it for it in self._places if it not in self._taken), self._places[-1])
        self._taken.add(place)
        place.numbers[_STATE] = _GONE  # until it begins
        return place

    def free(self, place: Place) -> None:
        """Note that the worker of a place has ended."""
        self._taken.discard(place)
        place.numbers[_STATE] = _GONE

    def used(self) -> Iterator[Place]:
        """Yield the places that have ever been taken."""
        for place in self._places:
            if place.numbers[_STATE] == _NEVER:
                return
            yield place
