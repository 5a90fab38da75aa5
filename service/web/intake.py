"""Portions of what a client sends: so much is parsed in one turn of the loop."""

# Bytes that are parsed at a time. Of chunks of one byte, which cost most, it is half a millisecond.
PORTION = 2048
# Bytes, where they have few ends of lines, and so few chunks.
LARGE_PORTION = 65_536
FEW = 300  # ends of lines


def portion(read: bytearray) -> bytes:
    """Take off what may be parsed at once."""
    few = len(read) <= PORTION or read.count(b"\n", 0, LARGE_PORTION) <= FEW
    size = LARGE_PORTION if few else PORTION
    taken = bytes(read[:size])
    del read[:size]
    return taken
