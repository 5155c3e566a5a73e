"""A node that answers oddly, at the address of a simulated one: what the simulator's HTTP server cannot send."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from tests.integration.conftest import NodeServer

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_SECONDS = 0.02
# The text of an answer that belongs to no request. A client that reads it has got a wrong answer.
STRAY = b"stray answer"
EARLY = b"HTTP/1.1 100 Continue\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(STRAY), STRAY)
HEADER_OF_16_KB = "h" * 16000
CLAIMED_TOKENS_PER_SECOND = 500_000

EARLY_ANSWER, BIG_HEADERS, NEGATIVE, LIAR = "early answer", "big headers", "negative gauge", "liar in /metrics"


def metrics(kind: str, seconds: float) -> bytes:
    """Return /metrics of an idle vLLM node that runs for these seconds, with the fault."""
    labels = '{engine="0",model_name="sim"}'
    tokens = CLAIMED_TOKENS_PER_SECOND * seconds if kind == LIAR else 0
    values = {
        ("kv_cache_usage_perc", "gauge"): 0,
        ("num_requests_running", "gauge"): 0,
        ("num_requests_waiting", "gauge"): -1 if kind == NEGATIVE else 0,
        ("num_preemptions", "counter"): 0,
        ("prompt_tokens", "counter"): tokens,
        ("generation_tokens", "counter"): tokens,
    }
    lines = [
        f"# TYPE vllm:{name} {sort}\nvllm:{name}{'_total' if sort == 'counter' else ''}{labels} {value:.1f}\n"
        for (name, sort), value in values.items()
    ]
    return "".join(lines).encode()


def handler(kind: str) -> type[BaseHTTPRequestHandler]:
    """Return the HTTP side of a stand-in with a fault."""
    began = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 0
        timeout = 2  # for a connection that asks nothing

        def do_GET(self) -> None:
            """Answer a scrape."""
            body = metrics(kind, time.monotonic() - began)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            """Answer a completion as a stream."""
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with contextlib.suppress(OSError):
                if kind == EARLY_ANSWER:
                    self.wfile.write(EARLY)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Connection", "close")
                if kind == BIG_HEADERS:
                    self.send_header("X-Long", HEADER_OF_16_KB)
                self.end_headers()
                self.stream(asked["max_tokens"])
            self.close_connection = True

        def stream(self, tokens: int) -> None:
            """Send tokens as the simulator does, and the end."""
            piece = b"data: " + json.dumps({"choices": [{"index": 0, "text": "word "}]}).encode() + b"\n\n"
            pace = threading.Event()
            for _ in range(tokens):
                pace.wait(TOKEN_SECONDS)
                self.wfile.write(piece)
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    return Handler


class StandIn(NodeServer):
    """A server whose end waits for the answers under way."""

    daemon_threads = False


@contextlib.contextmanager
def standing_in(kind: str, host: str, port: int) -> Iterator[None]:
    """Serve at an address that nobody has."""
    server = StandIn(host, handler(kind), None, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
