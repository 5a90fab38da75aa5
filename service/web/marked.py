"""Who has just marked: their lists and counts have to show it, wherever they are read.

The answer of a mark carries a moment, by which it was committed, and whoever sends that along with
a list or a count sees the mark, on any instance. For others it is noted in memory that the workers
of an instance share, by a hash of the caller: where two callers have one place, the primary is
asked what a replica could have answered. The moment is the same for a second, as an answer's date.
"""

import math
import re
import time
from collections.abc import Callable

from aiohttp import web
from multidict import istr

from service.web.request_info import info

HEADER = istr("X-Marked-At")
DIGITS = re.compile("[0-9]{1,15}")
# Seconds beyond the moment: one in which it is the same, and one for clocks that are set back.
MARGIN = 2


class Marked:
    """Notes and tells when callers have marked."""

    def __init__(self, clock: Callable[[], float], moments: "memoryview[float]") -> None:
        """Note them in `moments` (float64), by a `clock` of seconds that all instances share."""
        self._clock = clock
        self._moments = moments
        self._second = self._moment = 0
        self.line = ""  # of the answer's head

    def note(self, user_id: str) -> None:
        """Note that a caller has marked, now that it is committed."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._moment = math.ceil(self._clock()) + MARGIN
            self.line = f"{HEADER}: {self._moment}\r\n"
        self._moments[self._place(user_id)] = self._moment

    def headers(self) -> dict[str, str]:
        """The header of an answer to what was noted last."""
        return {HEADER: str(self._moment)}

    def moment(self, request: web.Request) -> float:
        """By when all is committed that its caller has marked, as far as it is known; or 0."""
        told = request.headers.get(HEADER, "")
        sent = int(told) if DIGITS.fullmatch(told) else 0
        return max(sent, self._moments[self._place(info(request).user_id)])

    def _place(self, user_id: str) -> int:
        # The workers have it from one process, so that they agree on hashes.
        return hash(user_id) % len(self._moments)
