"""The service, and a thread beside it that says how many tasks its loop has to who connects."""

import asyncio
import os
import socket
import sys
import threading

import uvloop

from service.__main__ import main


def address(pid: int) -> str:
    """Where to ask: an abstract socket, of Linux."""
    return f"\0systemevent-read-soak-{pid}"


def _answer(listener: socket.socket, loops: list[asyncio.AbstractEventLoop]) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(str(sum(len(asyncio.all_tasks(loop)) for loop in loops)).encode())


def _watch() -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    make = uvloop.new_event_loop

    def remember() -> uvloop.Loop:
        loop = make()
        loops.append(loop)
        return loop

    uvloop.new_event_loop = remember
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address(os.getpid()))
    listener.listen()
    threading.Thread(target=_answer, args=(listener, loops), daemon=True).start()


if __name__ == "__main__":
    _watch()
    sys.exit(main())
