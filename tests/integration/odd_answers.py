"""Answers that no inference server sends, what the client gets instead, and a node that sends them.

docs/security.md has them as a table, which a test compares with this file.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSED = 0  # the connection is closed before an answer is complete
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
LENGTH = b"Content-Length: 2\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# Whole answers, which a client would take for those to its next requests
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nFORGED" * 2


@dataclass(frozen=True)
class Odd:
    """An answer, byte by byte.

    Attributes:
        group: of the table.
        what: the answer, in the table's words.
        sent: its bytes; the node then closes its connection.
        gets: the statuses that the client may get, CLOSED for no complete answer. nginx's versions differ.
        method: of the request.
        upgrades: whether the client asks for a WebSocket.
    """

    group: str
    what: str
    sent: bytes
    gets: tuple[int, ...]
    method: str = "POST"
    upgrades: bool = False

    @property
    def row(self) -> str:
        """Return the table's row."""
        words = {CLOSED: "the connection is closed", 502: "502 of nginx"}
        return f"| {self.what} | {' or '.join(words.get(status, f'{status} of the node') for status in self.gets)} |"


def informational(status: int, head: bytes = b"", body: bytes = FORGED) -> bytes:
    """Return an answer with a 1xx status and a body."""
    return b"HTTP/1.1 %03d Odd\r\n%bContent-Length: %d\r\n\r\n%b" % (status, head, len(body), body)


def headers_of(size: int) -> bytes:
    """Return a whole answer with so many bytes of headers, the status line included."""
    start, end = OK, LENGTH
    while size - len(start) - len(end) > 1100:
        start += b"X-Filler: %b\r\n" % (b"x" * 1000)
    return start + b"X-Rest: %b\r\n" % (b"x" * (size - len(start) - len(end) - 10)) + end + b"ok"


WAS_NO_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + FORGED

ODD = (
    Odd("Informational answers", "`100` with a body", informational(100), (502,)),
    Odd(
        "Informational answers",
        "`100` with chunks",
        b"HTTP/1.1 100 Continue\r\n" + CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(FORGED), FORGED),
        (502,),
    ),
    Odd("Informational answers", "`100` alone", b"HTTP/1.1 100 Continue\r\n\r\n", (502,)),
    Odd(
        "Informational answers", "`100`, then an answer", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + b"ok", (502,)
    ),
    Odd("Informational answers", "`101` that nobody asked for", WAS_NO_ANSWER, (502,)),
    Odd("Informational answers", "`101` that the client asked for", WAS_NO_ANSWER, (502,), upgrades=True),
    Odd("Informational answers", "`102` with a body", informational(102), (502,)),
    # From 1.29 on nginx itself takes hints out.
    Odd(
        "Informational answers",
        "`103`, then an answer",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + LENGTH + b"ok",
        (502, 200),
    ),
    Odd("Informational answers", "`199` with a body", informational(199), (502,)),
    Odd("Status lines", "none", b"hello\r\n\r\n" + FORGED, (CLOSED,)),
    Odd("Status lines", "two spaces in it", b"HTTP/1.1  200 OK\r\n" + LENGTH + FORGED, (200,)),
    Odd("Status lines", "a line before it", b"\r\n" + OK + LENGTH + b"ok" + FORGED, (CLOSED,)),
    Odd("Status lines", "no bytes at all", b"", (502,)),
    Odd("Status lines", "half of the headers", b"HTTP/1.1 200 OK\r\nContent-Le", (502,)),
    Odd("Status lines", "the status 000", b"HTTP/1.1 000 Odd\r\n" + LENGTH + b"ok", (502,)),
    Odd("Status lines", "the status 099", informational(99), (502,)),
    Odd("Status lines", "the status 999", b"HTTP/1.1 999 Odd\r\n" + LENGTH + b"ok", (999,)),
    Odd("Status lines", "the status 1000", b"HTTP/1.1 1000 Odd\r\n" + LENGTH + b"ok", (CLOSED,)),
    Odd("Status lines", "the status -1", b"HTTP/1.1 -1 Odd\r\n" + LENGTH + b"ok", (CLOSED,)),
    Odd("Status lines", "a reason of 12,000 bytes", b"HTTP/1.1 200 %b\r\n" % (b"x" * 12000) + LENGTH + b"ok", (200,)),
    Odd("Status lines", "a reason of 30,000 bytes", b"HTTP/1.1 200 %b\r\n" % (b"x" * 30000) + LENGTH + b"ok", (502,)),
    Odd(
        "Status lines",
        "quotes and escapes in the reason",
        b'HTTP/1.1 200 \x1b[31m\xff"\\\r\n' + LENGTH + b"ok",
        (200,),
    ),
    Odd("Status lines", "HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nok", (200,)),
    Odd("Status lines", "HTTP/2.0", b"HTTP/2.0 200 OK\r\n" + LENGTH + b"ok", (200,)),
    Odd("Headers", "16 KiB of them", headers_of(16 * 1024), (200,)),
    Odd("Headers", "100,000 bytes of them", headers_of(100_000), (502,)),
    Odd("Headers", "one of 99,999 bytes", OK + b"X: %b\r\n" % (b"x" * 99999) + LENGTH + b"ok", (502,)),
    Odd("Headers", "a line without a colon", OK + b"no colon here\r\n" + LENGTH + b"ok", (502,)),
    Odd("Headers", "a header on two lines", OK + b"X: a\r\n b\r\n" + LENGTH + b"ok", (502,)),
    Odd("Headers", "a NUL in a value", OK + b"X: a\0b\r\n" + LENGTH + b"ok", (502,)),
    Odd("Headers", "a NUL in a name", OK + b"X\0: ab\r\n" + LENGTH + b"ok", (502,)),
    Odd("Headers", "LF in place of CRLF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", (200,)),
    Odd(
        "Headers",
        "`X-Accel-*`",
        OK + b"X-Accel-Redirect: /health\r\nX-Accel-Limit-Rate: 1\r\nX-Accel-Buffering: yes\r\n" + LENGTH + b"ok",
        (200,),
    ),
    Odd(
        "Headers",
        "`Connection`, `Keep-Alive`, `Upgrade`, `Set-Cookie`",
        OK + b"Connection: X-Request-Id\r\nKeep-Alive: timeout=9\r\nUpgrade: h2c\r\nSet-Cookie: a\r\n" + LENGTH + b"ok",
        (200,),
    ),
    Odd("Lengths", "longer than the body", OK + b"Content-Length: 9\r\n\r\nok", (CLOSED,)),
    Odd("Lengths", "shorter than the body", OK + LENGTH + b"ok" + FORGED, (200,)),
    Odd("Lengths", "negative", OK + b"Content-Length: -2\r\n\r\nok", (200, 502)),
    Odd("Lengths", "no number", OK + b"Content-Length: 2x\r\n\r\nok", (200, 502)),
    Odd("Lengths", "of 20 digits", OK + b"Content-Length: 99999999999999999999\r\n\r\nok", (200, 502)),
    Odd("Lengths", "two that differ", OK + b"Content-Length: 6\r\n" + LENGTH + b"ok" + FORGED, (200, 502)),
    Odd(
        "Lengths",
        "`Content-Length` and chunks",
        OK + b"Content-Length: 9\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + FORGED,
        (200, 502),
    ),
    Odd("Lengths", "chunks, and more bytes", OK + CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + FORGED, (200,)),
    Odd("Lengths", "a chunk size that is none", OK + CHUNKED + b"zz\r\nok\r\n", (CLOSED,)),
    Odd("Lengths", "a chunk size of 20 digits", OK + CHUNKED + b"f" * 20 + b"\r\nok", (CLOSED,)),
    Odd("Lengths", "chunks that end too early", OK + CHUNKED + b"5\r\nok", (CLOSED,)),
    Odd(
        "Lengths",
        "`Transfer-Encoding: gzip, chunked`",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        (200, 502),
    ),
    Odd("Bodies", "`204` with one", b"HTTP/1.1 204 Odd\r\n" + LENGTH + b"ok" + FORGED, (204,)),
    Odd("Bodies", "`304` with one", b"HTTP/1.1 304 Odd\r\n" + LENGTH + b"ok" + FORGED, (304,)),
    Odd("Bodies", "one for `HEAD`", OK + LENGTH + b"ok" + FORGED, (200,), method="HEAD"),
    Odd("Bodies", "NUL bytes", OK + LENGTH + b"\0\0", (200,)),
)


def table() -> str:
    """Return the table of docs/security.md."""
    head = "| what a node sends | what the client gets |\n| --- | --- |\n"
    groups = dict.fromkeys(each.group for each in ODD)
    rows = {group: "\n".join(each.row for each in ODD if each.group == group) for group in groups}
    return "\n".join(f"### {group} of nodes\n\n{head}{rows[group]}\n" for group in groups)


class OddNode(socketserver.ThreadingTCPServer):
    """A node that sends the very bytes of the odd answer that a request's X-Odd names, or an echo."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = int(self.server_address[1])

    def handle_error(self, *_arguments: Any) -> None:
        """Say nothing: nginx goes away in the middle of many an odd answer."""


class Handler(socketserver.StreamRequestHandler):
    """One connection of nginx."""

    def handle(self) -> None:
        """Answer requests until one gets an odd answer."""
        while self.rfile.readline():
            headers = {}
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get(b"content-length", 0)))
            if b"x-odd" in headers:
                self.wfile.write(ODD[int(headers[b"x-odd"])].sent)
                self.request.shutdown(socket.SHUT_WR)
                return
            answer = json.dumps({"echo": body.decode()}).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


@contextlib.contextmanager
def odd_node() -> Iterator[OddNode]:
    """Let an odd node answer."""
    with OddNode() as node:
        thread = threading.Thread(target=node.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield node
        node.shutdown()
        thread.join()
