"""The command line: serve, migrate, token."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from errno import EACCES, EADDRINUSE
from typing import NoReturn

import uvloop
from aiohttp import web

from service import config as configuration
from service import embedded, logs
from service.app import create_runner
from service.config import Config, address
from service.errors import ConfigError
from service.keys import load_key
from service.tokens import sign

# A closed terminal (SIGHUP) stops us as well; with several workers, gunicorn makes it a reload.
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except ConfigError as error:
        print(f"systemevent-read: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("systemevent-read", description="Read state of system events.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="PATH", help="default: ./config.toml")

    command = commands.add_parser("serve", parents=[common], help="answer requests until SIGTERM")
    command.add_argument("--workers", metavar="N", help="overrides server.workers")
    command.set_defaults(run=_serve)

    command = commands.add_parser("migrate", parents=[common], help="bring the schema up to date")
    command.set_defaults(run=_migrate)

    command = commands.add_parser("token", parents=[common], help="sign a token, for trying things")
    command.add_argument("user_id", metavar="USER_ID")
    command.set_defaults(run=_token)
    return parser


def _load(arguments: argparse.Namespace) -> Config:
    environ = dict(os.environ)
    if arguments.workers is not None:
        environ["SYSTEMEVENT_SERVER_WORKERS"] = arguments.workers
    config = configuration.load(arguments.config, environ)
    if not config.auth.jwks_url:
        load_key(config.auth)  # so that a file that cannot be used is told at once
    return config


def _serve(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    logs.set_up(config.logging)
    for number in STOP:
        signal.signal(number, _exit)  # until there is something to finish
    _check_free("server", config.server.host, config.server.port)
    _check_free("admin", config.admin.host, config.admin.port)
    with embedded.database(config) as (served, url):

        def announce() -> None:
            if not config.database.url:
                _say_what_to_try(served, url)

        if served.server.workers > 1:
            from service import workers  # noqa: PLC0415 - one process does not need gunicorn

            def reload() -> tuple[Config, str]:
                again = _load(arguments)
                if bool(again.database.url) != bool(config.database.url):
                    raise ConfigError("database.url: to or from embedded mode only by a restart")
                return embedded.with_secret(again), again.database.url or url

            workers.run(reload, announce)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve_alone(served, url, announce))


async def _serve_alone(config: Config, url: str, announce: Callable[[], None]) -> None:
    """Serve from this process until one of the signals that stop it."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def end(error: ConfigError | None = None) -> None:
        if not stop.done():
            stop.set_exception(error) if error else stop.set_result(None)

    for number in STOP:
        loop.add_signal_handler(number, end)
    runner = create_runner(config, url, end)
    try:
        await runner.setup()
        await _listen(web.TCPSite(runner, config.server.host, config.server.port, backlog=1024))
        announce()
        await stop
    finally:
        await runner.cleanup()


async def _listen(site: web.TCPSite) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"server.port: cannot listen: {error.strerror}") from None


def _check_free(section: str, host: str, port: int) -> None:
    """Say that a port is taken before anything else is started."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        key = "port" if getattr(error, "errno", None) in (EADDRINUSE, EACCES) else "host"
        raise ConfigError(
            f"{section}.{key}: cannot listen on {host}:{port}: "
            f"{getattr(error, 'strerror', 'not a host name')}; "
            f"set SYSTEMEVENT_{section.upper()}_{key.upper()} to another"
        ) from None


def _migrate(arguments: argparse.Namespace) -> None:
    config = configuration.load(arguments.config)
    logs.set_up(config.logging)
    if not config.database.url:
        raise ConfigError("database.url: missing; embedded mode migrates by itself")
    from service.migrations import migrate  # noqa: PLC0415 - 12 MB that `serve` does not need

    applied = migrate(config.database.url)
    print(f"applied: {', '.join(applied) or 'nothing, the schema is up to date'}")  # noqa: T201


def _token(arguments: argparse.Namespace) -> None:
    config = embedded.with_secret(configuration.load(arguments.config))
    print(sign(config.auth, arguments.user_id))  # noqa: T201


def _say_what_to_try(config: Config, url: str) -> None:
    base = f"http://{address(config.server)}"
    newest = "order by read_at desc limit 5"
    print(  # noqa: T201
        "The bell, in a browser:",
        f"  {base}/",
        "Mark two events as read:",
        f"  curl -X POST {base}/systemevent/read \\",
        f"    -H 'Authorization: Bearer {sign(config.auth, 'ada')}' -d '{{\"ids\": [199, 200]}}'",
        "See what happened:",
        f"  '{embedded.psql()}' '{url}' -c 'table system_event_read {newest}'",
        "Ctrl-C stops all of it.",
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
