"""Serving from one process: an application of one configuration, from its start to its end.

A reload starts another one beside it, on the same sockets, and this one retires.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from service import logs
from service.admin import site as admin
from service.admin.board import Board, Place
from service.app import Demo, create_runner, try_out
from service.auth.keys import FixedKeys, load_key
from service.config import Config
from service.errors import ConfigError
from service.listening import Ports

log = logging.getLogger("systemevent-read")

# Seconds in which a client that connected just before the listener closed may send a request.
LAST_GRACE = 1.0
INSTANCES = 8  # that count at the same time in one process, since each reload begins another


@dataclass(frozen=True)
class Settings:
    """What is read at the start and at each reload."""

    config: Config
    keys: FixedKeys | None  # None: they are fetched from auth.jwks_url


def load(config: Config) -> Settings:
    """Read the keys that a configuration names.

    Raises:
        ConfigError: they cannot be used.
    """
    return Settings(config, None if config.auth.jwks_url else load_key(config.auth))


class Instance:
    """The application, and its connections; the sockets that it listens on belong to others."""

    def __init__(
        self,
        settings: Settings,
        give_up: Callable[[ConfigError], None],
        place: Place,
        demo: Demo | None,
    ) -> None:
        """Build it; `give_up` and `place` as in create_app()."""
        self.place = place
        self._drain = settings.config.server.drain
        self._runner = create_runner(
            settings.config, give_up, keys=settings.keys, place=place, demo=demo
        )
        self._health = self._runner.app[admin.HEALTH]
        self._runners = [self._runner]  # of both ports, once it is started

    @property
    def is_ready(self) -> bool:
        """Whether it has ever been able to serve."""
        return self._health.is_ready

    async def start(self) -> None:
        """Start it; nobody can reach it yet."""
        await self._runner.setup()
        self._runners.append(self._runner.app[admin.RUNNER])

    async def listen(self, ports: Ports) -> None:
        """Let callers in."""
        await self._runner.app[admin.RUNNER].listen(ports.admin)
        await self._runner.listen(ports.server)

    def say_close(self) -> None:
        """Have each answer end its connection, and say so."""
        for runner in self._runners:
            runner.closing = True

    async def retire(self) -> None:
        """End, while others serve on the same sockets: nobody notices.

        A connection that is open may be used once more, which tells its client that it ends.
        """
        self.say_close()
        for runner in self._runners:
            await runner.stop_listening()
        await asyncio.gather(*(runner.run_dry(self._drain) for runner in self._runners))
        await self._runner.cleanup()

    async def stop(self, hurry: asyncio.Event) -> None:
        """End, with nobody after us: /ready says so, and callers are let in until balancers know.

        Once `hurry` is set, only requests that are under way are waited for.
        """
        self._health.shutting_down = True
        self.say_close()
        await first(hurry, self._drain)
        await self._runner.stop_listening()
        if not hurry.is_set():
            await self._runner.run_dry(min(LAST_GRACE, self._drain))
        await self._runner.cleanup()


async def serve(
    settings: Settings,
    read: Callable[[], Settings],
    ports: Ports,
    announce: Callable[[], None],
    demo: Demo | None,
) -> None:
    """Serve from this process until it is told to stop. SIGHUP takes what `read` returns.

    Raises:
        ConfigError: it turns out that it cannot work, before it ever did.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[signal.Signals | ConfigError] = asyncio.Queue()
    hurry = asyncio.Event()
    for number in ending():
        loop.add_signal_handler(number, told.put_nowait, number)
    terminal = Terminal()
    board = Board(INSTANCES)
    instance = original = Instance(settings, told.put_nowait, board.take(), demo)
    retiring: set[asyncio.Task[None]] = set()
    try:
        await instance.start()
        await instance.listen(ports)
        announce()
        while True:
            event = await told.get()
            if isinstance(event, ConfigError):
                if instance is original:
                    raise event
            elif event != signal.SIGHUP or terminal.is_closed():
                break
            elif (new := await _replacement(read, ports, board, demo)) is not None:
                task = asyncio.create_task(_retire(instance, board))
                retiring.add(task)
                task.add_done_callback(retiring.discard)
                instance = new
        loop.add_signal_handler(signal.SIGINT, hurry.set)
        if event == signal.SIGINT:  # a person waits for it
            hurry.set()
    except BaseException:
        hurry.set()
        raise
    finally:
        ports.close()
        await asyncio.gather(instance.stop(hurry), *retiring)


async def _replacement(
    read: Callable[[], Settings], ports: Ports, board: Board, demo: Demo | None
) -> Instance | None:
    """Start another instance as configured now, if that can serve; else say why not."""
    try:
        new = read()
        if new.config.server.workers > 1:
            raise ConfigError("server.workers: from one to several only by a restart")
        await try_out(new.config, new.keys)
        ports.open(new.config)
        instance = Instance(new, complain, board.take(), demo)
        await instance.start()
        await instance.listen(ports)
    except Exception as error:  # noqa: BLE001 - what is wrong with it ends no service that works
        not_reloaded(error)
        return None
    logs.set_up(new.config.logging)
    log.info("reloaded")
    return instance


async def _retire(instance: Instance, board: Board) -> None:
    await instance.retire()
    board.free(instance.place)
    del instance
    gc.unfreeze()  # so that the collector sees what it was made of
    gc.collect()
    gc.freeze()


def not_reloaded(error: Exception) -> None:
    """Say why what serves goes on as it was."""
    log.error("not reloaded: %s", error if isinstance(error, ConfigError) else repr(error))


def complain(error: ConfigError) -> None:
    """Say why an instance cannot serve yet, where that ends no service: it once could."""
    log.error("%s; answering 503 until that is mended", error)


def hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless it was ignored when we were started (nohup): then it stays so."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


def ending() -> tuple[signal.Signals, ...]:
    """The signals that ask for the end; to a service that is up SIGHUP says: reload."""
    return (signal.SIGTERM, signal.SIGINT, *hang_up())


class Terminal:
    """The terminal that we were started from, if any: its end comes as SIGHUP, too."""

    def __init__(self) -> None:
        """Look whether there is one."""
        self._was_there = _has_terminal()

    def is_closed(self) -> bool:
        """Whether it was there and is not any more."""
        return self._was_there and not _has_terminal()


def _has_terminal() -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False


async def first(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
