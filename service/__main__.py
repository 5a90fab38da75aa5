"""The command line: serve, migrate, grants, platform-views, prune, token."""

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvloop

from service import __version__, logs, resource, serving
from service import config as configuration
from service.auth.tokens import sign
from service.config import Config, address
from service.database import url
from service.database.prune import Progress, prune
from service.database.queries import migration_names
from service.demo import mode, page, postgres
from service.errors import ConfigError
from service.listening import Ports
from service.progress import shown, summary
from service.serving import Settings

log = logging.getLogger("systemevent-read")

INTERRUPTED = 130  # the status of what was ended before it was done


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and return the exit status."""
    arguments = _parser().parse_args(argv)
    logs.set_up(configuration.load_logging(arguments.config))
    _do_without_account()
    try:
        return int(arguments.run(arguments) or 0)
    except ConfigError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _do_without_account() -> None:
    """Make do without a name and a home, which a container's user may not have.

    A home that may not be entered counts as none: asyncpg would end where libpq goes on. And yoyo
    notes who has migrated.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.geteuid())
    with contextlib.suppress(RuntimeError):  # there is none
        if not os.access(Path.home(), os.X_OK):
            os.environ["HOME"] = "/nonexistent"  # as Debian calls it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("systemevent-read", description="Read state of system events.")
    parser.add_argument("--version", action="version", version=f"systemevent-read {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="PATH", help="default: ./config.toml")

    command = commands.add_parser("serve", parents=[common], help="answer requests until SIGTERM")
    command.add_argument("--workers", metavar="N", help="overrides server.workers")
    command.set_defaults(run=_serve)

    command = commands.add_parser("migrate", parents=[common], help="bring the schema up to date")
    command.add_argument(
        "--undo",
        metavar="ID",
        choices=sorted(migration_names() | {"views"}),
        help="instead, take back this migration and all after it, with the data of their tables; "
        "views: only those, until the next migrate",
    )
    command.set_defaults(run=_migrate)

    command = commands.add_parser(
        "grants", help="print, for psql, what grants the service's role all that it needs"
    )
    command.add_argument("role", metavar="ROLE")
    command.set_defaults(run=_grants, config=None)

    command = commands.add_parser(
        "platform-views", help="print an example of views over a platform's own tables"
    )
    command.set_defaults(run=_platform_views, config=None)

    command = commands.add_parser(
        "prune", parents=[common], help="remove read rows whose event is gone; or old; or a user's"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="also those whose event is older"
    )
    which.add_argument("--user", metavar="ID", help="all rows of a user instead, for erasure")
    command.add_argument("--dry-run", action="store_true", help="count them, and remove nothing")
    command.set_defaults(run=_prune)

    command = commands.add_parser("token", parents=[common], help="sign a token, for trying things")
    command.add_argument("user_id", metavar="USER_ID")
    command.set_defaults(run=_token)
    return parser


def _days(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError("1 to 99999")
    return int(text)


def _read(arguments: argparse.Namespace) -> Config:
    environ = dict(os.environ)
    if arguments.workers is not None:
        environ["SYSTEMEVENT_SERVER_WORKERS"] = arguments.workers
    return configuration.read(arguments.config, environ)


def _load(config: Config) -> Settings:
    """Read what the configuration names, so that what cannot be used is told at once."""
    if config.database.url != mode.LATER:
        url.read(config.database.url)
    if config.database.read_url:
        url.read(config.database.read_url, replica=True)
    return serving.load(config)


def _serve(arguments: argparse.Namespace) -> None:
    config = _read(arguments)
    trying = not config.database.url
    settings = _load(mode.check(config) if trying else configuration.check(config))
    _on_signals(0)  # until there is something to finish
    with contextlib.ExitStack() as opened:
        ports = opened.enter_context(contextlib.closing(Ports()))
        ports.open(config)
        complete: Callable[[Config], Config] = configuration.check
        if trying:
            complete = opened.enter_context(mode.database(config))
            settings = _load(complete(config))
        demo = page.routes if trying else None

        def read() -> Settings:
            return _load(complete(_read(arguments)))

        def announce() -> None:
            if trying:
                _say_what_to_try(settings.config)

        if config.server.workers > 1:
            from service import workers

            workers.run(settings, read, ports, announce, demo)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serving.serve(settings, read, ports, announce, demo))


def _on_signals(status: int) -> None:
    """End with a status on each signal that asks for the end, also as process 1 of a container."""

    def end(*_: object) -> NoReturn:
        sys.exit(status)

    for number in serving.ending():
        signal.signal(number, end)


def _migrate(arguments: argparse.Namespace) -> None:
    database = configuration.load_database(arguments.config)
    _on_signals(INTERRUPTED)
    from service.database.migrations import migrate, undo

    if arguments.undo:
        print(f"undone: {', '.join(undo(database.url, arguments.undo))}")
        return
    applied = migrate(database.url)
    print(f"applied: {', '.join(applied) or 'nothing, the schema is up to date'}")


def _grants(arguments: argparse.Namespace) -> None:
    role = arguments.role.replace("\\", r"\\").replace("'", r"\'")
    print(f"\\set role '{role}'", (resource("deploy") / "grants.sql").read_text("utf-8"), sep="\n")


def _platform_views(_: argparse.Namespace) -> None:
    print((resource("deploy") / "platform_views.sql").read_text("utf-8"), end="")


def _prune(arguments: argparse.Namespace) -> int:
    database = configuration.load_database(arguments.config)
    progress = Progress()
    run = partial(
        prune,
        database,
        progress,
        older_than=arguments.older_than,
        user_id=arguments.user,
        dry_run=arguments.dry_run,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            stopped = runner.run(_until_stopped(shown(run, progress)))
    finally:
        print(summary(progress, dry_run=arguments.dry_run))
    if stopped:
        print("stopped; what is done stays, run it again to go on")
        return 128 + stopped
    return 1 if progress.left else 0


async def _until_stopped(work: Coroutine[None, None, None]) -> int:
    """Await `work`, or cancel it on a signal that stops us, and return its number; else 0."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in serving.ending():
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return received[0] if received else 0


def _token(arguments: argparse.Namespace) -> None:
    config = configuration.read(arguments.config)
    config = configuration.check(config) if config.database.url else mode.with_secret(config)
    print(sign(config.auth, arguments.user_id))


def _say_what_to_try(config: Config) -> None:
    psql = shlex.join((str(postgres.binaries() / "psql"), config.database.url))
    base = f"http://{address(config.server)}"
    newest = "order by read_at desc, event_id desc limit 2"
    print(
        "The bell, in a browser:",
        f"  {base}/",
        "Mark two events as read:",
        f"  curl -w '\\n' -X POST {base}/systemevent/read \\",
        f"    -H 'Authorization: Bearer {sign(config.auth, 'ada')}' -d '{{\"ids\": [199, 200]}}'",
        "See what happened:",
        f"  {psql} -c 'table system_event_read {newest}'",
        "Ctrl-C stops all of it.",
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
