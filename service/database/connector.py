"""Opens connections to where a URL leads, at the first address that answers."""

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from service import config
from service.database import passfile, tls, url
from service.database.failures import Unusable, is_hopeless

AVOIDED = 30.0  # seconds for which an address that did not answer in time comes last
KEEPALIVES = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Connection(asyncpg.Connection):
    """A connection that knows the server process behind it, even when it is closed."""

    pid: int
    _transport: asyncio.Transport  # asyncpg has no other way to the socket

    def set_up(self, options: url.Options) -> None:
        """Note the process, and tell TCP what libpq would."""
        self.pid = self.get_server_pid()
        peer: socket.socket = self._transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            return
        if options.get("keepalives", "1") != "0":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for key, name in KEEPALIVES.items():
            value, option = int(options.get(key, 0)), getattr(socket, name, None)
            if value > 0 and option is not None:  # not every system has each
                peer.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass(frozen=True)
class Address:
    """One of those behind a URL."""

    name: str  # as the URL has it: a certificate and a passfile are for that
    where: str  # the folder of a socket, or an address in numbers
    port: int


class Connector:
    """Knows where the database is; shared by all connections of a worker."""

    def __init__(self, database: config.Database, *, replica: bool = False) -> None:
        """Read database.url, or that of the replica, if that has not been done.

        Raises:
            ConfigError: it cannot be used.
        """
        where = database.read_url if replica else database.url
        self._options = options = url.known(where, replica=replica)
        self.hosts = url.hosts(options)
        self.timeout = max(float(options.get("connect_timeout", 0)), 0) or database.connect_timeout
        self._arguments: dict[str, Any] = {
            "user": options["user"],
            "database": options["dbname"],
            "target_session_attrs": options["target_session_attrs"],
            "krbsrvname": "postgres",  # where nothing is given, asyncpg looks into the environment
            "gsslib": "gssapi",
            "statement_cache_size": database.statement_cache_size,
            # asyncpg does not bound the time in which it closes a statement that it forgets.
            "max_cached_statement_lifetime": 0,
            "connection_class": Connection,
        }
        own = {"options": options.get("options"), "application_name": _application_name(options)}
        self._settings = {name: value for name, value in own.items() if value}
        self._avoided: dict[Address, float] = {}  # with the loop time until which

    async def connect(self, deadline: float, settings: Mapping[str, str]) -> Connection:
        """Connect to the first address that answers, and is of the kind that the URL asks for.

        asyncpg would look for that too, but with one time limit for all, which the first may use
        up; and it knows nothing of a name with several addresses.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError: of the last one, or one of which
                failures.py says that waiting will not mend it.
        """
        loop = asyncio.get_running_loop()
        addresses, failures = await self._addresses(deadline)
        for number, address in enumerate(addresses):
            left = (deadline - loop.time()) / (len(addresses) - number)
            try:
                async with asyncio.timeout(min(max(left, 0.001), self.timeout)):
                    return await self._try(address, settings)
            except TimeoutError as error:
                self._avoided[address] = loop.time() + AVOIDED
                failures.append(error)
            except Exception as error:  # noqa: BLE001 - another address may do
                failures.append(error)
        raise next(filter(is_hopeless, failures), failures[-1])

    async def _addresses(self, deadline: float) -> tuple[list[Address], list[Exception]]:
        """All addresses, in the order in which to try them; and why some are not known."""
        loop = asyncio.get_running_loop()
        names = self._options["host"].split(",")
        numbers = self._options.get("hostaddr", "").split(",")
        numbers = numbers if len(numbers) == len(names) else [""] * len(names)
        ports = map(int, self._options["port"].split(","))
        hosts = list(zip(names, numbers, ports, strict=True))
        spread = self._options["load_balance_hosts"] == "random"
        if spread:
            random.shuffle(hosts)
        limit = min((deadline - loop.time()) / 2, self.timeout)
        found = await asyncio.gather(
            *(_look_up(*host, limit) for host in hosts), return_exceptions=True
        )
        addresses: list[Address] = []
        failures: list[Exception] = []
        for answer in found:
            if isinstance(answer, Exception):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                addresses += random.sample(answer, len(answer)) if spread else answer
        now = loop.time()
        self._avoided = {key: until for key, until in self._avoided.items() if until > now}
        return sorted(addresses, key=self._avoided.__contains__), failures

    async def _try(self, address: Address, settings: Mapping[str, str]) -> Connection:
        """Connect to one address, with TLS or without it, as sslmode says."""
        options = self._options
        password = options.get("password") or passfile.find(
            options.get("passfile", ""),
            address.name,
            address.port,
            options["dbname"],
            options["user"],
        )
        *others, last = tls.attempts(options, address.name, address.where)
        for context in others:
            try:
                return await self._open(address, context, password, settings)
            except asyncpg.InvalidPasswordError:  # not to be sent again, and not in the clear
                raise
            except (Unusable, ssl.SSLError, asyncpg.InvalidAuthorizationSpecificationError):
                continue  # the other way, as libpq does
        return await self._open(address, last, password, settings)

    async def _open(
        self,
        address: Address,
        context: tls.Tls,
        password: str,
        settings: Mapping[str, str],
    ) -> Connection:
        try:
            connection: Connection = await asyncpg.connect(
                host=address.where,
                port=address.port,
                password=password,  # never None: asyncpg would look for one
                ssl=context,
                direct_tls=bool(context) and self._options["sslnegotiation"] == "direct",
                timeout=self.timeout,
                server_settings={**self._settings, **settings},
                **self._arguments,
            )
        except ConnectionError as error:
            if "rejected SSL upgrade" not in str(error):
                raise
            mode = self._options["sslmode"]
            text = f"sslmode={mode}: the server does not speak TLS"
            raise Unusable(errno.EPROTO, text) from error
        connection.set_up(self._options)
        return connection


async def _look_up(name: str, number: str, port: int, limit: float) -> list[Address]:
    """The addresses of a host; one that is known already, or is a socket, is all there is."""
    if number or name.startswith("/"):
        return [Address(name, number or name, port)]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limit):
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [Address(name, where, port) for where in dict.fromkeys(str(to[0]) for *_, to in found)]


def _application_name(options: url.Options) -> str:
    """As libpq chooses it."""
    names = (options.get("application_name"), options.get("fallback_application_name"))
    return next(filter(None, names), url.APPLICATION)
