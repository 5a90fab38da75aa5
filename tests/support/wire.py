"""A TCP proxy before a server, whose connections can be reset, or fall silent for ever."""

import asyncio
import contextlib
from typing import Self


class Wire:
    """Passes on what is sent, both ways, until it is told otherwise."""

    def __init__(self, port: int) -> None:
        """Lead to that port of 127.0.0.1; `port` of the wire is known once it is entered."""
        self._to = port
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._silent: set[asyncio.StreamWriter] = set()  # ends of links that pass nothing on
        self._server: asyncio.Server
        self.refuses = False  # whether a new connection is reset at once
        self.is_silent = False  # whether nothing is passed on, on connections old and new
        self.port: int

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it, and all connections."""
        self._server.close()
        self.reset()

    def reset(self) -> None:
        """Reset all connections."""
        for link in self._links:
            for end in link:
                end.transport.abort()

    def silence(self) -> None:
        """Pass nothing on any more: as when a firewall forgets; `is_silent` for new ones."""
        self.is_silent = True
        for link in self._links:
            self._silent.update(link)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        link = (writer, back)
        self._links.add(link)
        if self.is_silent:
            self._silent.update(link)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._links.discard(link)
        self._silent.difference_update(link)
        for end in link:
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if writer not in self._silent:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError  # one end has gone: so does the other
