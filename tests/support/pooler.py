"""A PgBouncer in transaction mode before a server, with what the README says."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.cluster import Cluster, free_port

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
README = Path(__file__).parent.parent.parent / "README.md"


def _row() -> str:
    """What the README says of it."""
    text = README.read_text()
    return next(line for line in text.splitlines() if line.startswith("| PgBouncer"))


def settings() -> list[str]:
    """What to set on the role, since the settings of a session are dropped."""
    found = re.findall(r"`(?:alter role systemevent_read set )?(\w+ = '?\w+'?)`", _row())
    assert found
    return found


@contextlib.contextmanager
def transactions(server: Cluster, size: int) -> Iterator[int]:
    """Up to `size` sessions for each database and role; the port where all roles may enter."""
    assert PGBOUNCER
    port, folder = free_port(), server.folder / "pgbouncer"
    folder.mkdir(exist_ok=True)
    (folder / "users").write_text('"postgres" ""\n')
    ignored = _row().partition("`ignore_startup_parameters = ")[2].partition("`")[0]
    assert ignored
    (folder / "ini").write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder}/users
        auth_user = postgres
        auth_query = select usename, passwd from pg_shadow where usename = $1
        pool_mode = transaction
        max_client_conn = 1000
        default_pool_size = {size}
        server_idle_timeout = 10
        server_login_retry = 0.1
        ignore_startup_parameters = {ignored}
        """.replace("        ", "")
    )
    with subprocess.Popen(
        [PGBOUNCER, "-q", folder / "ini"],
        user=server.data.owner() if os.geteuid() == 0 else None,  # refuses to run as root
    ) as process:
        yield port
        process.terminate()
