"""The contenders that speak HTTP: the service, configured in several ways, and two other apps."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.error import URLError

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.postgres import ROOT, Databases, Size, cpu_seconds

SECRET = "a secret of the bench, 32 bytes and more"
PATIENCE = 30.0  # seconds for a start or a stop


@dataclass(frozen=True)
class Server:
    """A running contender."""

    port: int
    process: subprocess.Popen[bytes]
    size: Size

    def cpu(self) -> float:
        """CPU seconds used so far."""
        return cpu_seconds(self.process.pid)

    def memory(self) -> tuple[float, float]:
        """RSS and PSS of its largest process, in MB: with several workers, of one of them."""
        root = psutil.Process(self.process.pid)
        sizes = [process.memory_full_info() for process in (root, *root.children(recursive=True))]
        return max(size.rss for size in sizes) / 2**20, max(size.pss for size in sizes) / 2**20


class Starter:
    """Starts contenders, all on one PostgreSQL and with one key pair."""

    def __init__(self, databases: Databases, folder: Path) -> None:
        """Keep keys and logs in `folder`."""
        self._databases = databases
        self._folder = folder
        self.rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public_key = folder / "public.pem"
        self._public_key.write_bytes(
            self.rsa_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    @contextlib.contextmanager
    def service(
        self,
        size: Size,
        workers: int = 1,
        algorithm: str = "HS256",
        settings: Mapping[str, object] = MappingProxyType({}),
        program: Sequence[str] = ("service", "serve"),
    ) -> Iterator[Server]:
        """Run the service; `settings` are its keys in lower case, such as commit_in_flight.

        `program` is what runs: a module and its arguments.
        """
        key = {"auth_secret": SECRET}
        if algorithm != "HS256":
            key = {"auth_public_key_file": str(self._public_key)}
        port, admin = _free_port(), _free_port()
        settings = {
            **settings,
            "server_port": port,
            "admin_port": admin,
            "server_workers": workers,
            "database_url": self._databases.url(size),
            "auth_algorithms": algorithm,
            **key,
        }
        environ = {f"SYSTEMEVENT_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", *program]
        with self._run(command, environ, port, f"http://127.0.0.1:{admin}/ready", size) as server:
            yield server

    @contextlib.contextmanager
    def fastapi(self, size: Size, workers: int = 1) -> Iterator[Server]:
        """Run the FastAPI app on uvicorn, with its defaults for speed: uvloop and httptools."""
        port = _free_port()
        environ = {"DATABASE_URL": self._databases.url(size), "SECRET": SECRET}
        command = [sys.executable, "-m", "uvicorn", "bench.fastapi_app:app", "--port", str(port)]
        command += ["--workers", str(workers), "--loop", "uvloop", "--http", "httptools"]
        ready = f"http://127.0.0.1:{port}/openapi.json"
        with self._run(command, environ, port, ready, size) as server:
            yield server

    @contextlib.contextmanager
    def aiohttp(self, size: Size) -> Iterator[Server]:
        """Run aiohttp with nothing behind it."""
        port = _free_port()
        command = [sys.executable, "-m", "bench.aiohttp_app", str(port)]
        with self._run(command, {}, port, f"http://127.0.0.1:{port}/ready", size) as server:
            yield server

    @contextlib.contextmanager
    def _run(
        self, command: Sequence[str], environ: dict[str, str], port: int, ready: str, size: Size
    ) -> Iterator[Server]:
        clean = {name: value for name, value in os.environ.items() if "SYSTEMEVENT_" not in name}
        log = self._folder / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=clean | environ, stdout=output, stderr=output
            )
        try:
            _wait_until_ready(process, ready, log)
            yield Server(port, process, size)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
            return
        time.sleep(0.1)
    raise SystemExit(f"a contender did not start; its log ends:\n{log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
