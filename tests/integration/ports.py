"""Ports of 127.0.0.1 for one process of pytest.

This is not in conftest.py, because pytest loads that under a second name: two lists would give out each port twice.
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
    """Yield the ports of this pytest process again and again: its own share of those below the kernel's range."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = 20000 // processes
    first = 12000 + number * share
    # gixy believes that a port with 443 in it is for TLS.
    return itertools.cycle(port for port in range(first, first + share) if "443" not in str(port))


PORTS = own_ports()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, and that nothing else will be given for a long time."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            break
    return port
