"""The sockets that a host stands for."""

import socket
from errno import EAFNOSUPPORT
from typing import Any

import pytest

from service.config import Admin, Config, Server
from service.listening import Ports


@pytest.mark.parametrize("host", ["", "::"])
def test_every_address_is_those_that_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """With IPv6 switched off (ipv6.disable=1), that of IPv4 alone."""

    class WithoutIpv6(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *rest: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    ports = Ports()
    ports.open(Config(server=Server(host=host, port=0), admin=Admin(port=0)))
    assert [one.family for one in ports.server] == [socket.AF_INET]
    ports.close()
