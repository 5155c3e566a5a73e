# SPDX-License-Identifier: Apache-2.0
"""Log lines: for the journal with a priority and fields, for a terminal as text."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from vllm_lb.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7  # syslog(3)
SOCKET = "/run/systemd/journal/socket"


def log(priority: int, message: str, **fields: Any) -> None:
    """Write a line to stderr: for the journal with its priority, on a terminal without debug lines.

    In the journal `fields` can be searched for, as VLLM_NGINX_LB_NODE=node-a and the like.
    """
    for_journal = "JOURNAL_STREAM" in os.environ
    if fields and is_stderr_the_journal() and all(send(priority, line, fields) for line in message.splitlines()):
        return
    with contextlib.suppress(OSError):  # a log that cannot be written must not stop what it reports
        for line in message.splitlines():
            if for_journal:
                print(f"<{priority}>{line}", file=sys.stderr)
            elif priority <= INFO:
                print(line, file=sys.stderr)


def is_stderr_the_journal() -> bool:
    """Tell whether systemd has connected stderr to the journal, and nobody has redirected it since: systemd.exec(5)."""
    with contextlib.suppress(OSError):
        found = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def send(priority: int, message: str, fields: Mapping[str, Any]) -> bool:
    """Send a line with fields to the journal; return False if the host has none.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a datagram of NAME=value lines. No value of ours has a line break.
    """
    import socket

    lines = {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "vllm-nginx-lb"}
    lines |= {f"VLLM_NGINX_LB_{name.upper()}": value for name, value in fields.items() if value is not None}
    entry = "".join(f"{name}={printable(str(value), 2000)}\n" for name, value in lines.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.settimeout(1)
            journal.sendto(entry.encode(), SOCKET)
    except OSError:  # a host without systemd's journal
        return False
    return True
