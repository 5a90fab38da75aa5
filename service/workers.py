"""Several workers on one machine: gunicorn starts them, replaces them and stops them.

They share the listening socket; each has its own connections and its own group commit.
"""

import os
from collections.abc import Callable

from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from service.app import create_runner
from service.config import Config
from service.errors import ConfigError
from service.protocol import Runner

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

    def __init__(self, load: Callable[[], tuple[Config, str]]) -> None:
        """Serve what `load` returns, at the start and at each reload: configuration, database."""
        self._load = load
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn (it calls this at the start and on SIGHUP)."""
        self._config, self._url = self._load()
        server, limits = self._config.server, self._config.limits
        settings = {
            "bind": f"{server.host}:{server.port}",
            "workers": server.workers,
            "worker_class": _Worker,
            "logger_class": _Logger,
            "graceful_timeout": int(limits.deadline) + 5,
            "timeout": 30,
            "backlog": 1024,
            "control_socket_disable": True,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)  # type: ignore[union-attr] # set before this is called

    def load(self) -> Callable[[Callable[[ConfigError], None]], Runner]:
        """Return what makes a worker's runner."""
        return lambda give_up: create_runner(self._config, self._url, give_up)


def run(load: Callable[[], tuple[Config, str]]) -> None:
    """Serve until SIGTERM. SIGHUP reads the configuration again and replaces the workers."""
    os.environ.pop("GUNICORN_CMD_ARGS", None)
    Workers(load).run()
