"""What all connections of one port share: its terms, and the bounds of what they take together."""

import resource
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.observing import Observers
from service.turns import Rotation
from service.web.cors import Cors

if TYPE_CHECKING:
    from service.web.connection import ClientConnection

# File descriptors that are left to the database, the log and the operator's port
RESERVED = 150
# Connections at a time; one takes some 20 KB.
MOST = 10_000
# Bytes of answers that clients do not take, of all connections of a port
UNTAKEN = 64 * 2**20


def most_connections() -> int:
    """As many connections as the process may have descriptors for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(files - RESERVED, files // 2), MOST) if files > 0 else MOST


@dataclass
class Terms:
    """What holds for all connections of one port, and which of them wait for a request."""

    cors: Cors
    observers: Observers
    max_header_size: int  # bytes of one header, and of the request line
    write_deadline: float  # seconds for a client to take what is written; SLOWEST adds to it
    closing: bool = False  # whether each answer is the last one on its connection
    chunks: Rotation = field(default_factory=Rotation)  # of what comes in chunks
    most: int = field(default_factory=most_connections)  # beyond, one that waits is closed
    open: int = 0  # connections
    idle: "dict[ClientConnection, None]" = field(default_factory=dict)  # the longest first
    # Whose body was not all there when its turn came; the longest first
    late: "dict[ClientConnection, None]" = field(default_factory=dict)
    # Bytes that wait for each client that does not take its answers; who began first is first
    untaken: "dict[ClientConnection, int]" = field(default_factory=dict)

    def close_one(self) -> None:
        """Close who has been idle for the longest; where nobody is, who is late with a body."""
        while waiting := self.idle or self.late:
            longest = next(iter(waiting))
            del waiting[longest]
            if longest.waits:
                longest.force_close()
                return

    def make_room(self) -> None:
        """Cut off connections of callers who leave too much to us, until it is little enough.

        Of the caller who leaves most, since a slow client must not pay for others; the longest
        first.
        """
        while len(self.untaken) > 1 and sum(self.untaken.values()) > UNTAKEN:
            left: Counter[str] = Counter()
            for connection, size in self.untaken.items():
                left[connection.caller] += size
            ((most, _),) = left.most_common(1)
            next(each for each in self.untaken if each.caller == most).cut_off()
