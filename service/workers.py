"""Several workers on one machine: gunicorn starts them, replaces them and stops them.

They share the listening sockets; each has its own connections and its own group commit. What
gunicorn would do is changed where it could end a service that works: a reload that cannot work is
refused before it replaces anybody, and a worker that fails later waits, or is started anew.
"""

import asyncio
import logging
import mmap
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable

import uvloop
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from service import logs
from service.admin.board import Board, Place
from service.app import Demo, try_out
from service.errors import ConfigError
from service.listening import Ports
from service.serving import Instance, Settings, Terminal, complain, first, hang_up, not_reloaded

log = logging.getLogger("systemevent-read")

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - files there have no name, but for a moment
BOOT_ERROR = 3  # gunicorn's code for: end all of it
# A worker that has lived for less, in seconds, is replaced only after a pause, which doubles.
SHORT_LIFE = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
LAST_WORDS = 10  # times, 0.05 s apart, that a worker told to end looks whether all of them end
# Flags that the master and all workers see: all of it ends; a worker has once been ready; and for
# each worker, in a place of its own, whether it has been.
STOPPING, WORKED, FIRST_PLACE = 0, 1, 2
PLACES = 1024  # for workers, those that retire among them


class _Logger(Logger):
    """Gunicorn's records, among ours."""

    def setup(self, cfg: object) -> None:
        self.error_log.propagate = True


class _Worker(Worker):
    """One process, with one loop."""

    app: "Workers"
    board_place: Place  # where it counts
    flag: int  # its place among the flags
    started: float

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGHUP, signal.SIGUSR1):  # for the master
            signal.signal(number, signal.SIG_IGN)

    def load_wsgi(self) -> None:
        """Nothing: what is served is made where its loop runs."""

    def run(self) -> None:
        self.booted = bool(self.app.flags[WORKED])  # or else what is raised now ends all of it
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_Serving(self).run())
        sys.exit(status)


class _Serving:
    """What a worker does."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._flags = worker.app.flags
        self._ports = worker.app.ports
        self._wake, self._hurry = asyncio.Event(), asyncio.Event()
        self._ending = False
        self._status = 0

    async def run(self) -> int:
        """Serve until told to end; the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._end_at_once)
        beat = asyncio.create_task(self._beat())
        app = self._worker.app
        instance = Instance(app.settings, self._give_up, self._worker.board_place, app.demo)
        await instance.start()
        await self._serve(instance)
        self._flags[self._worker.flag] = False
        await self._end_of(instance)
        beat.cancel()
        return self._status

    async def _serve(self, instance: Instance) -> None:
        """Let callers in once it is ready; before, only where nobody else is."""
        listening = False
        while not self._ending:
            self._flags[self._worker.flag] = instance.is_ready
            self._flags[WORKED] |= instance.is_ready
            if not listening and (instance.is_ready or not any(self._flags[FIRST_PLACE:])):
                listening = True
                await instance.listen(self._ports)
                self._ports.close()
            await first(self._wake, 1.0 if instance.is_ready else 0.05)
            self._ending |= bool(self._flags[STOPPING]) or self._is_orphan()
        self._ports.close()

    async def _end_of(self, instance: Instance) -> None:
        """Retire, unless all end: the master's word for that may be later than a signal."""
        instance.say_close()
        for _ in range(LAST_WORDS):
            if not (self._flags[STOPPING] or self._is_orphan()):
                await asyncio.sleep(0.05)
        await (instance.stop(self._hurry) if self._flags[STOPPING] else instance.retire())

    async def _beat(self) -> None:
        """Tell the master that the loop is not stuck."""
        while True:
            self._worker.notify()
            await asyncio.sleep(1)

    def _is_orphan(self) -> bool:
        return bool(os.getppid() != self._worker.ppid)

    def _end(self) -> None:
        self._ending = True
        self._wake.set()

    def _end_at_once(self) -> None:
        self._hurry.set()
        self._end()

    def _give_up(self, error: ConfigError) -> None:
        complain(error) if self._flags[WORKED] else log.error("%s", error)
        if not self._flags[WORKED]:
            self._status = BOOT_ERROR
            self._end_at_once()


class _Master(Arbiter):
    """The process that looks after the workers."""

    app: "Workers"

    def __init__(self, app: "Workers") -> None:
        super().__init__(app)
        self.LISTENERS = app.ports.all
        self._terminal = Terminal()
        self._retired = 0  # workers of this age and older are to end
        self._pause, self._next = 0.0, 0.0  # before a worker is replaced; and when one may be

    def init_signals(self) -> None:
        ignored = not hang_up()
        super().init_signals()
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def handle_hup(self) -> None:
        """Reload, if what is configured now can work."""
        if self._terminal.is_closed():
            raise StopIteration  # as on SIGTERM
        if self.app.reread():
            self.LISTENERS = self.app.ports.all
            self._retired = self.worker_age
            self.app.reload()
            self.setup(self.app)
            self._pause = self._next = 0.0
            self.manage_workers()

    def manage_workers(self) -> None:
        """Start those that are missing, and end those that are too old or too many."""
        if (keys := self.app.settings.keys) is not None:
            keys.look()
        ages = sorted((worker.age, pid) for pid, worker in self.WORKERS.items())
        serving = [pid for age, pid in ages if age > self._retired]
        retired = [pid for age, pid in ages if age <= self._retired]
        for _ in range(self.num_workers - len(serving)):
            if time.monotonic() >= self._next:
                self.spawn_worker()
        for pid in [*retired, *serving[: max(len(serving) - self.num_workers, 0)]]:
            self.kill_worker(pid, signal.SIGTERM)

    def note_start(self, worker: _Worker) -> None:
        """Give a worker its places."""
        used = {other.flag for other in self.WORKERS.values()}
        worker.flag = next(n for n in range(FIRST_PLACE, FIRST_PLACE + PLACES) if n not in used)
        worker.board_place = self.app.board.take()
        worker.started = time.monotonic()

    def note_end(self, worker: _Worker) -> None:
        """Free its places; where it has failed soon after its start, wait before the next one."""
        self.app.flags[worker.flag] = False
        self.app.board.free(worker.board_place)
        now = time.monotonic()
        if worker.age <= self._retired or self.app.flags[STOPPING]:
            return
        if now - worker.started >= SHORT_LIFE:
            self._pause = 0.0
        else:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            log.warning("a worker has ended early: the next in %.1f s", self._pause)
        self._next = now + self._pause

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - gunicorn's
        self.app.flags[STOPPING] = True
        super().stop(graceful)


class Workers(BaseApplication):
    """What is to be served, for gunicorn."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        ports: Ports,
        announce: Callable[[], None],
        demo: Demo | None,
    ) -> None:
        """Serve `settings` on `ports`, and after a reload what `read` returns."""
        self.settings = settings
        self.ports = ports
        self.demo = demo
        self.board = Board()
        self._heartbeats = _folder_of_heartbeats()
        self.flags = mmap.mmap(-1, FIRST_PLACE + PLACES)
        self._read = read
        self._announce = announce
        super().__init__()

    def reread(self) -> bool:
        """Read the configuration again; whether what it says can work."""
        try:
            new = self._read()
            asyncio.run(try_out(new.config, new.keys))
            self.ports.open(new.config)
        except Exception as error:  # noqa: BLE001 - what is wrong with it ends no service that works
            not_reloaded(error)
            return False
        logs.set_up(new.config.logging)
        self.settings = new
        return True

    def load_config(self) -> None:
        """Tell gunicorn (it calls this at the start and on SIGHUP)."""
        server, limits = self.settings.config.server, self.settings.config.limits
        settings = {
            "workers": server.workers,
            "worker_class": _Worker,
            "worker_tmp_dir": self._heartbeats,
            "logger_class": _Logger,
            # aiohttp waits for handlers twice, each time as long as create_runner() lets it
            "graceful_timeout": int(server.drain + 2 * limits.deadline) + 10,
            "timeout": 30,
            "control_socket_disable": True,
            "when_ready": lambda _: self._announce(),
            "pre_fork": lambda master, worker: master.note_start(worker),
            "child_exit": lambda master, worker: master.note_end(worker),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)  # type: ignore[union-attr] # set before this is called

    def run(self) -> None:
        """Serve until SIGTERM."""
        _Master(self).run()


def _folder_of_heartbeats() -> str:
    """Where each worker has the file by whose time it shows that it lives.

    Shared memory: a container has it though its root is read-only, and it never waits for a disk.

    Raises:
        ConfigError: there is no folder that can be written to.
    """
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise ConfigError(
            "server.workers: with several, each has an empty file that shows that it lives, and no "
            f"folder can be written to; make {SHARED_MEMORY} or /tmp writable, or set TMPDIR"
        ) from None


def run(
    settings: Settings,
    read: Callable[[], Settings],
    ports: Ports,
    announce: Callable[[], None],
    demo: Demo | None,
) -> None:
    """Serve until SIGTERM; otherwise as serving.serve()."""
    os.environ.pop("GUNICORN_CMD_ARGS", None)
    try:
        Workers(settings, read, ports, announce, demo).run()
    except HaltServer as halt:  # a worker gave up while others were being stopped
        sys.exit(halt.exit_status)
