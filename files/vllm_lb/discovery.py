# SPDX-License-Identifier: Apache-2.0
"""Where a node is: its name becomes an IP address, which is both scraped and published."""

from __future__ import annotations

import errno
import queue
import socket
import threading
from typing import TYPE_CHECKING

from vllm_lb.addresses import canonical, is_ip
from vllm_lb.network import fault_of, own_limit

if TYPE_CHECKING:
    from vllm_lb.settings import Node

Answer = list[str] | OSError


def resolve(node: Node, last: str | None, timeout_seconds: float) -> tuple[str, str | None]:
    """Return the IP address of a node. The `last` address stays as long as the node's name still has it.

    A name that does not resolve says nothing against the node: the last address is returned, with the reason.

    Raises:
        OSError: the name does not resolve, and there is no last address.
    """
    if is_ip(node.host):
        return canonical(node.host), None
    found: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    try:
        threading.Thread(target=look_up, args=(node, found), daemon=True).start()  # libc's resolver has no deadline
    except RuntimeError:
        found.put(own_limit(errno.ENOMEM))
    try:
        answer = found.get(timeout=timeout_seconds)
    except queue.Empty:
        answer = socket.gaierror(errno.ETIMEDOUT, "the resolver does not answer")
    if isinstance(answer, OSError):
        if not last:
            raise answer
        return last, fault_of(answer)[1]
    return last if last in answer else answer[0], None


def look_up(node: Node, found: queue.SimpleQueue[Answer]) -> None:
    """Put the addresses of a node's name on the queue, or the error of the resolver."""
    try:
        infos = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        usable = [address for info in infos if is_ip(address := str(info[4][0]))]
        found.put(usable or socket.gaierror(errno.EADDRNOTAVAIL, "no usable address"))
    except OSError as error:
        found.put(error)
