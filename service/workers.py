"""Several workers on one machine: gunicorn starts them, replaces them and stops them.

They share the listening socket; each has its own connections and its own group commit.
"""

import logging
import os
import sys
from collections.abc import Callable
from functools import partial

from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from service.app import create_runner
from service.config import Config, address
from service.errors import ConfigError
from service.protocol import Runner

log = logging.getLogger(__name__)

BOOT_ERROR = 3  # gunicorn's code for: do not start this worker again


class _Logger(Logger):
    """Gunicorn's records, among ours."""

    def setup(self, cfg: object) -> None:  # noqa: ARG002
        self.error_log.propagate = True


class _Worker(GunicornUVLoopWebWorker):
    """One process; `wsgi` is a function that makes its runner."""

    async def _run(self) -> None:
        make: Callable[[Callable[[ConfigError], None]], Runner] = self.wsgi

        async def runner() -> Runner:
            return make(self._give_up)

        self.wsgi = runner
        await super()._run()

    def _give_up(self, error: ConfigError) -> None:
        self.log.error("%s", error)
        self.exit_code = BOOT_ERROR
        self.alive = False
        self._notify_waiter_done()


class Workers(BaseApplication):
    """The process that looks after the workers."""

    def __init__(
        self, load: Callable[[], tuple[Config, str]], announce: Callable[[], None]
    ) -> None:
        """Serve what `load` returns, at the start and at each reload: configuration, database."""
        self._load = load
        self._announce = announce
        self._loaded: tuple[Config, str] | None = None
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn (it calls this at the start and on SIGHUP)."""
        try:
            self._loaded = self._load()
        except ConfigError as error:
            if self._loaded is None:
                raise
            log.error("not reloaded: %s", error)  # noqa: TRY400 - the text says it all
        config, _ = self._loaded
        server, limits = config.server, config.limits
        settings = {
            "bind": address(server),
            "workers": server.workers,
            "worker_class": _Worker,
            "logger_class": _Logger,
            # aiohttp waits for handlers twice, see create_runner()
            "graceful_timeout": int(2 * limits.deadline) + 10,
            "timeout": 30,
            "backlog": 1024,
            "control_socket_disable": True,
            "when_ready": lambda _: self._announce(),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)  # type: ignore[union-attr] # set before this is called

    def load(self) -> Callable[[Callable[[ConfigError], None]], Runner]:
        """Return what makes a worker's runner."""
        assert self._loaded is not None  # noqa: S101 - load_config() comes first
        return partial(create_runner, *self._loaded, shared=True)


def run(load: Callable[[], tuple[Config, str]], announce: Callable[[], None]) -> None:
    """Serve until SIGTERM. SIGHUP reads the configuration again and replaces the workers.

    Calls `announce` once the socket is open.
    """
    os.environ.pop("GUNICORN_CMD_ARGS", None)
    try:
        Workers(load, announce).run()
    except HaltServer as halt:  # a worker gave up while others were being stopped
        sys.exit(halt.exit_status)
