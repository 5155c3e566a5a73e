"""A port whose packets are dropped, as those of a host without power or behind a firewall."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 4  # more than the queue of a socket without a backlog holds


@contextlib.contextmanager
def dropped(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Take a port, by default any free one, and return it.

    The kernel answers no connection, because the queue of those to be accepted is full.
    """
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(CONNECTIONS):
            filler = opened.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listening.getsockname())
        yield int(listening.getsockname()[1])
