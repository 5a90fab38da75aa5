"""Standard error, written without ever waiting for its reader: what does not fit is counted."""

import asyncio
import errno
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable

# How much is kept for a reader that is late, in bytes, beside what a pipe holds by itself.
MAX_KEPT = 64 * 1024
# So much, at most, is written whole to a pipe, or not at all (POSIX): lines of workers that share
# it do not mix.
_WHOLE = select.PIPE_BUF


class Sink:
    """Writes lines to a descriptor; from anywhere, also from a thread and before the loop runs."""

    def __init__(self, descriptor: int, tell: Callable[[int], bytes]) -> None:
        """Write to `descriptor`; `tell` makes the line that says how many lines were dropped."""
        self.dropped = 0  # lines, in all
        self._told = 0
        self._tell = tell
        self._kept = bytearray()
        # One that its holder may take again: what the collector finalizes can log in the midst.
        self._lock = threading.RLock()
        self._is_busy = False
        self._watching: asyncio.AbstractEventLoop | None = None
        self._descriptor, self._send = _open(descriptor)
        os.register_at_fork(after_in_child=self._begin_anew)

    def write(self, lines: bytes) -> None:
        """Write lines, each with its end; they are kept or dropped where there is no room."""
        with self._lock:
            # Once a line is dropped all are, until their count is written where they are missing.
            is_full = len(self._kept) + len(lines) > MAX_KEPT or self._told < self.dropped
            if self._kept and is_full:
                self.dropped += lines.count(b"\n")
            else:
                self._kept += lines
            if not self._is_busy:
                self._write()

    def flush(self, seconds: float) -> None:
        """Give the reader some time to take what is kept."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._write_on() and (left := end - time.monotonic()) > 0:
            poll.poll(left * 1000)

    def _write_on(self) -> bool:
        """Write what is kept; whether there is more, and waiting for room can help."""
        with self._lock:
            return not self._is_busy and self._write()

    def _write(self) -> bool:
        self._is_busy = True
        try:
            while self._kept or self._told < self.dropped:
                if not self._kept:
                    self._kept += self._tell(self.dropped - self._told)
                    self._told = self.dropped
                end = self._kept.rfind(b"\n", 0, _WHOLE) + 1 or self._kept.find(b"\n") + 1
                sent = self._send(bytes(self._kept[: end or len(self._kept)]))
                del self._kept[:sent]
        except BlockingIOError:
            self._watch()
            return True
        except OSError:  # nobody reads it any more, or the disk is full: the next line tries again
            pass
        finally:
            self._is_busy = False
        self._watch(room=True)
        return False

    def _watch(self, *, room: bool = False) -> None:
        """Have the loop, if one runs here, go on when there is room; or no longer, with `room`."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread, or no loop yet: the next line goes on
            return
        if room and self._watching is loop:
            self._watching = None
            loop.remove_writer(self._descriptor)
        elif not room and self._watching is not loop:
            self._watching = loop
            loop.add_writer(self._descriptor, self._write_on)

    def _begin_anew(self) -> None:
        """In a process that was forked: what is kept, and counted, is the parent's to write."""
        self._lock = threading.RLock()
        self._is_busy = False
        self._kept.clear()
        self._told = self.dropped
        self._watching = None


def _open(descriptor: int) -> tuple[int, Callable[[bytes], int]]:
    """What to wait for, and how to send without waiting.

    A pipe or terminal is opened anew where that is allowed: to make the one we were given
    non-blocking would make it so for all processes that share it.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return connection.fileno(), lambda data: connection.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
        except OSError:
            os.set_blocking(descriptor, False)
    return descriptor, lambda data: os.write(descriptor, data)


def fill_standard_descriptors() -> None:
    """Have 0, 1 and 2 open, to nowhere if need be: else a socket could become standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
                os.set_inheritable(opened, True)  # noqa: FBT003 - it takes no keywords
