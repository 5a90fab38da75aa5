"""The sink: lines that never wait for their reader."""

import asyncio
import os
import pty
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.sink import MAX_KEPT, Sink

LINES = [b"%05d %s\n" % (n, b"x" * (n % 300)) for n in range(3000)]


def tell(count: int) -> bytes:
    """What a test's sink says of dropped lines."""
    return b"dropped %d\n" % count


def pipe() -> tuple[int, int]:
    """The ends of a pipe: to read, to write."""
    return os.pipe()


def sockets() -> tuple[int, int]:
    """The ends of a connection, as journald gives one."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    """The ends of a terminal."""
    return pty.openpty()


@pytest.mark.parametrize("make", [pipe, sockets, terminal])
async def test_what_has_no_room_is_dropped_and_counted(
    make: Callable[[], tuple[int, int]],
) -> None:
    """What is read is whole lines in their order, then how many are missing."""
    reader, writer = make()
    sink = Sink(writer, tell)
    for line in LINES:
        sink.write(line)
    assert sink.dropped
    assert os.get_blocking(writer)  # others share it

    def read() -> list[bytes]:
        received = b""
        while b"dropped" not in received or not received.endswith(b"\n"):
            received += os.read(reader, 65536).replace(b"\r", b"")
        return received.splitlines(keepends=True)

    *lines, last = await asyncio.to_thread(read)
    assert lines == LINES[: len(lines)]
    assert last == tell(len(LINES) - len(lines)) == tell(sink.dropped)


def test_without_a_loop_the_next_line_goes_on() -> None:
    """As in gunicorn's master; what is still kept at the end is flushed."""
    reader, writer = pipe()
    sink = Sink(writer, tell)
    for line in LINES:
        sink.write(line)
    first = os.read(reader, 20_000)
    sink.write(b"last\n")
    dropped = sink.dropped
    received: list[bytes] = []

    def read() -> None:
        while part := os.read(reader, 65536):
            received.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    sink.flush(10)
    os.close(writer)
    os.close(sink._descriptor)
    thread.join()
    assert b"dropped %d\n" % dropped in first + b"".join(received)


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """Where a shell has opened it so, several processes share it."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sink = Sink(descriptor, tell)
    sink.write(b"1\n")
    with path.open("ab") as other:
        other.write(b"2\n")
    sink.write(b"3\n")
    assert path.read_bytes() == b"1\n2\n3\n"
    assert sink.dropped == 0


def test_a_reader_that_is_gone_stops_nothing() -> None:
    """Nothing is raised, and nothing piles up."""
    reader, writer = pipe()
    sink = Sink(writer, tell)
    os.close(reader)
    for line in LINES:
        sink.write(line)
    assert len(sink._kept) <= MAX_KEPT
    assert sink.dropped
    sink.flush(10)


def test_a_fork_does_not_write_its_parents_lines() -> None:
    """What the parent has kept is the parent's."""
    reader, writer = pipe()
    sink = Sink(writer, tell)
    for line in LINES:
        sink.write(line)
    child = os.fork()
    if not child:
        os._exit(len(sink._kept) + sink.dropped - sink._told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(reader)
