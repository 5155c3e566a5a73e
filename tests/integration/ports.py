"""Ports of 127.0.0.1 for one process of pytest.

A module of its own: pytest loads conftest.py under a second name, and two lists would give out each port twice.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_ports() -> Iterator[int]:
    """Go round the ports of this process of pytest's: below those that the kernel gives away, and none of another's."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = 20000 // processes
    first = 12000 + number * share
    # gixy takes one with 443 in it for TLS.
    return itertools.cycle(port for port in range(first, first + share) if "443" not in str(port))


PORTS = own_ports()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, and that nothing else will be given for a long time."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            break
    return port
