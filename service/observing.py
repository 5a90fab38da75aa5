"""The one seam for observing: what happens is told once, and the log and the metrics listen.

Who tells does not know who listens; app.py connects them. A request is told with its RequestInfo
(web/request_info.py), when it is answered; all else that is told is here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

Observation = TypeVar("Observation")


class StatementRan(Struct, frozen=True, gc=False):
    """An attempt at a statement for one or more requests has ended, with success or without."""

    kind: str  # read, unread; for one request list (a list or a count), mark_all (a chunk)
    requests: int
    ids: int | None  # None: it is not about ids
    waited: float  # seconds until the start, of the request in it with the first deadline
    took: float  # seconds
    failure: str | None = None  # the kind of error, never its text


class DatabaseLost(Struct, frozen=True):
    """The database does not answer any more."""

    host: str
    reason: str


class DatabaseAway(Struct, frozen=True):
    """It still does not; told at intervals."""

    seconds: float  # since it was lost
    reason: str


class DatabaseBack(Struct, frozen=True):
    """It answers again."""

    seconds: float  # how long it was away


class ReplicaUsed(Struct, frozen=True):
    """Lists and counts are read from the replica, where they can be."""

    host: str


class ReplicaLeft(Struct, frozen=True):
    """They are not, for a reason: it is away, or too far behind."""

    host: str
    reason: str


class ReplicaRead(Struct, frozen=True, gc=False):
    """A list or a count could have been read from the replica."""

    # answered; or, where the primary was asked: left, not yet (what the caller has to see may not
    # be there), empty (the caller is not there, or not yet), failed
    outcome: str


class KeyFileRead(Struct, frozen=True):
    """A file of keys has changed, and was read again."""

    name: str  # of the setting that names it
    keys: int


class KeyFileFailed(Struct, frozen=True):
    """It has changed and cannot be used, or cannot be read; told once for each reason."""

    reason: str


class KeySetFetched(Struct, frozen=True):
    """A fetch of the key set yielded the keys that verify tokens."""

    keys: int
    changed: bool  # whether they are others than before


class KeySetFailed(Struct, frozen=True):
    """A fetch of the key set yielded no keys."""

    host: str
    reason: str


class KeySetEnded(Struct, frozen=True):
    """Its keys are not used any more: no fetch has confirmed them for too long."""

    seconds: float


class KeySkipped(Struct, frozen=True):
    """A key in the set is malformed; the others are used."""

    reason: str


class Observers:
    """Who listens to what, in one application."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._listeners: dict[type, list[Callable[[Any], None]]] = {}

    def listen(self, kind: type[Observation], listener: Callable[[Observation], None]) -> None:
        """Have `listener` called with each observation of this very type.

        It is called where the thing happens, so it must neither wait nor raise.
        """
        self._listeners.setdefault(kind, []).append(listener)

    def tell(self, observation: object) -> None:
        """Call whoever listens to observations of this type, in the order in which they came."""
        for listener in self._listeners.get(type(observation), ()):
            listener(observation)
