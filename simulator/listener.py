"""A listening socket that can be closed and opened again while its application lives on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

_BACKLOG = 1024


class Listener:
    """One address for one application.

    Attributes:
        port: the real one once open, also where 0 asked for any.
    """

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        """Prepare; open() listens."""
        self.port = port
        self._runner = runner
        self._host = host
        self._socket: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. A listener that listens already is left as it is.

        Raises:
            OSError: the address cannot be used.
        """
        if self._socket:
            return
        if self._runner.server is None:
            await self._runner.setup()
        protocol_factory = self._runner.server
        if protocol_factory is None:
            raise RuntimeError("the application has no server after its set-up")
        loop = asyncio.get_running_loop()
        self._socket = await loop.create_server(
            protocol_factory, self._host, self.port, reuse_address=True, backlog=_BACKLOG
        )
        self.port = self._socket.sockets[0].getsockname()[1]

    def close(self, spared: asyncio.BaseTransport | None = None) -> None:
        """Stop listening and cut every connection but the spared one, as when a process dies."""
        if not self._socket or not self._runner.server:
            return
        self._socket.close()
        self._socket = None
        for connection in self._runner.server.connections:
            transport = connection.transport
            if isinstance(transport, asyncio.Transport) and transport is not spared:
                transport.abort()
