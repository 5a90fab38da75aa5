"""The sockets of both ports: they stay open while what serves on them is replaced."""

import contextlib
import socket
from collections.abc import Sequence
from errno import EACCES, EADDRINUSE

from service.config import Config, anywhere
from service.errors import ConfigError
from service.web.protocol import BACKLOG


class Ports:
    """The public port and the operator's; connections wait in their queues."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._open: dict[str, tuple[tuple[str, int], Sequence[socket.socket]]] = {}

    def open(self, config: Config) -> None:
        """Open what is configured and is not open yet; close what is no longer configured.

        Raises:
            ConfigError: it cannot be opened; then nothing has changed.
        """
        wanted = {
            "server": (config.server.host, config.server.port),
            "admin": (config.admin.host, config.admin.port),
        }
        now, refused = {}, []
        with contextlib.ExitStack() as opened:
            for section, where in wanted.items():
                before = self._open.get(section)
                if before is None or before[0] != where:
                    try:
                        before = where, _listen(*where)
                    except (OSError, UnicodeError) as error:
                        refused.append(_refusal(section, where, error))
                        continue
                    opened.callback(_close, before[1])
                now[section] = before
            if refused:
                raise ConfigError("; ".join(refused))
            opened.pop_all()
        for section, (_, sockets) in self._open.items():
            if now[section][1] is not sockets:
                _close(sockets)
        self._open = now

    @property
    def server(self) -> Sequence[socket.socket]:
        """The public port, a socket for each address of its host."""
        return self._open["server"][1]

    @property
    def admin(self) -> Sequence[socket.socket]:
        """The operator's port."""
        return self._open["admin"][1]

    @property
    def all(self) -> list[socket.socket]:
        """Both."""
        return [*self.server, *self.admin]

    def close(self) -> None:
        """Close what this process has; who serves on them has descriptors of its own."""
        for _, sockets in self._open.values():
            _close(sockets)


def _listen(host: str, port: int) -> Sequence[socket.socket]:
    """Listen on every address of a host."""
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        found = socket.getaddrinfo(
            anywhere(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        if anywhere(host) is None:  # but with IPv6 switched off, the kernel cannot make its sockets
            found = [each for each in found if _is_there(each[0])]
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = opened.enter_context(socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # IPv4 has a socket of its own
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(BACKLOG)
            one.settimeout(0)
            sockets.append(one)
        opened.pop_all()
        return sockets


def _is_there(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _refusal(section: str, where: tuple[str, int], error: OSError | UnicodeError) -> str:
    key = "port" if getattr(error, "errno", None) in (EADDRINUSE, EACCES) else "host"
    host, port = where
    return (
        f"{section}.{key}: cannot listen on {host}:{port}: "
        f"{getattr(error, 'strerror', 'not a host name')}; "
        f"set SYSTEMEVENT_{section.upper()}_{key.upper()} to another"
    )


def _close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()
