"""What server.host and admin.host mean, with one worker and with several."""

import contextlib
import socket
from pathlib import Path

import pytest

from tests.conftest import SECRET, Sandbox
from tests.support.process import Process, run

LOOPBACK = ("127.0.0.1", "::1")


def reached(port: int) -> set[str]:
    """On which addresses of this machine somebody listens at a port."""
    found = set()
    for host in LOOPBACK:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5):
            found.add(host)
    return found


def ports(process: Process) -> tuple[int, int]:
    """The public port and the operator's."""
    return process.port, int(process.admin.rpartition(":")[2])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("host", ["", "::"])
async def test_a_host_means_the_same_with_one_worker_and_with_several(
    database: Sandbox, tmp_path: Path, workers: str, host: str
) -> None:
    """Nothing, or "::", is every address of both kinds."""
    environ = {
        "DATABASE_URL": database.url,
        "AUTH_SECRET": SECRET,
        "SERVER_HOST": host,
        "ADMIN_HOST": host,
    }
    async with run("serve", "--workers", workers, cwd=tmp_path, environ=environ) as process:
        await process.says('"ready"', instead_of='"error"')
        for port in ports(process):
            while reached(port) != {*LOOPBACK}:
                assert process.process.returncode is None
