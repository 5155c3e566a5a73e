# SPDX-License-Identifier: Apache-2.0
"""Asking nginx what it serves, and which of its processes are workers.

This runs as root, so the GET is made on a plain socket. An HTTP client would load thousands of lines, TLS among them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.text import printable

MAX_ANSWER_BYTES = 4096
OK = rb"HTTP/1\.[01] 200[ \r]"
BALANCER = r"(?im)^x-vllm-nginx-lb-balancer: *(upstream|work)\r?$"
ANSWER = r"([0-9a-z]{1,64})(?: ([0-9]{1,9}))?\s*"


@data()
class Live:
    """What nginx answers: the generation that its workers serve, and which worker answered."""

    generation: str | None  # None: nginx serves a configuration that is not ours
    worker: int | None = None  # its process id, if the answer has it
    balancer: str | None = None  # which of settings.BALANCERS nginx runs, if the answer has it


def ask(url: str, timeout_seconds: float) -> Live:
    """Ask nginx at confirm_url.

    Raises:
        FailureError: it does not answer.
    """
    try:
        head, body = get(url, timeout_seconds)
    except (OSError, ValueError) as error:
        why = printable(str(getattr(error, "strerror", None) or error or type(error).__name__)).lower()
        problem = f"nginx does not answer at {url} ({why}): is it running?"
        raise FailureError(FailureCause.NGINX_SILENT, problem) from error
    match = re.fullmatch(ANSWER, body or "")
    balancer = re.search(BALANCER, head)
    if not match:
        return Live(None)
    return Live(match[1], int(match[2]) if match[2] else None, balancer[1] if balancer else None)


def get(url: str, timeout_seconds: float, max_bytes: int = MAX_ANSWER_BYTES) -> tuple[str, str | None]:
    """GET a text; return the head of the answer and the text, which is None for any status but 200.

    Both together have `max_bytes`, or a few more; the rest is not read. No redirect is followed.

    Raises:
        OSError: no whole answer within the time.
        ValueError: the URL has no valid port.
    """
    parts = urlsplit(url)
    if parts.scheme == "https":
        return get_by_tls(url, timeout_seconds, max_bytes)
    deadline = time.monotonic() + timeout_seconds
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    answer = b""
    # As bytes: for a text Python loads the tables of international domain names.
    address: Any = ((parts.hostname or "").encode(), parts.port or 80)
    with socket.create_connection(address, timeout_seconds) as connection:
        connection.sendall(request.encode())
        while len(answer) < max_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            connection.settimeout(left)
            piece = connection.recv(max_bytes)
            if not piece:
                break
            answer += piece
    if not answer:
        raise OSError(0, "closed without an answer")
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode("latin-1"), body.decode("ascii", errors="replace") if re.match(OK, head) else None


def get_by_tls(url: str, timeout_seconds: float, max_bytes: int) -> tuple[str, str | None]:
    """GET a text over TLS, which is rare here, and loads an HTTP client."""
    import http.client
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as answer:
            return str(answer.headers), str(answer.read(max_bytes).decode("ascii", errors="replace"))
    except urllib.error.HTTPError:
        return "", None
    except http.client.HTTPException as error:
        raise OSError(0, "the answer is not HTTP") from error


def processes_of_group(member: int | None) -> tuple[int, set[int]]:
    """Return the process group of a process, and the other processes in it without its leader.

    All of nginx's workers are in its master's group. Their process titles would say which of them drain. But the
    service runs with ProtectProc=noaccess, and sees only that processes exist.
    """
    try:
        group = os.getpgid(member or 0) if member else 0
    except ProcessLookupError:  # the process has ended, or is in another process namespace
        group = 0
    found = set()
    for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()] if group else ():
        with contextlib.suppress(ProcessLookupError):
            if pid != group and os.getpgid(pid) == group:
                found.add(pid)
    return group, found
