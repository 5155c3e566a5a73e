"""Whatever bytes a node sends, a scrape ends with one sample for each node."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.conftest import free_port
from vllm_lb.scrape import scrape_all
from vllm_lb.settings import Node, Scrape
from vllm_lb.vllm_metrics import wanted_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDING = (Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0-busy.txt").read_bytes()
GOOD = b"\n".join(wanted_lines(RECORDING)) + b"\n"


class Parrots:
    """Three servers that answer any request with the very bytes they are told, and close."""

    def __init__(self) -> None:
        """Say nothing yet."""
        self.says = [b"", b"", b""]
        self.port = free_port()
        self.nodes = [Node(name=f"node-{i}", host=f"127.0.0.{i + 2}", port=self.port) for i in range(3)]

    @contextlib.contextmanager
    def listening(self) -> Iterator[Parrots]:
        """Answer meanwhile."""
        parrots = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while b"\r\n\r\n" not in self.request.recv(65536):
                        pass
                    self.request.sendall(parrots.says[int(self.request.getsockname()[0][-1]) - 2])

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        with contextlib.ExitStack() as servers:
            for node in self.nodes:
                server = servers.enter_context(Server((node.host, node.port), Handler))
                threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
                servers.callback(server.shutdown)
            yield self


@pytest.fixture(scope="module")
def parrots() -> Iterator[Parrots]:
    """Start three servers that say whatever a test wants."""
    with Parrots().listening() as them:
        yield them


STATUS_LINES = st.one_of(
    st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n"] * 5 + [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200\r\n", b"ICY 200 OK\r\n"]
    ),
    st.integers(-1, 1000).map(lambda code: b"HTTP/1.1 %d\r\n" % code),
    st.binary(max_size=40),
)
HEADERS = st.one_of(
    st.sampled_from([b"Content-Type: text/plain; version=1.0.0\r\n"] * 5),
    st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"Connection: keep-alive\r\n"]),
    st.integers(-(2**70), 2**70).map(lambda length: b"Content-Length: %d\r\n" % length),
    st.builds(lambda name, value: name + b": " + value + b"\r\n", st.binary(max_size=20), st.binary(max_size=40)),
    st.binary(max_size=40),
)
CHUNKS = st.builds(lambda size, data: b"%x\r\n%b\r\n" % (size, data), st.integers(0, 2**70), st.binary(max_size=20))
BODIES = st.one_of(
    st.sampled_from([GOOD, RECORDING, b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)]),
    st.integers(0, len(GOOD)).map(lambda end: GOOD[:end]),
    st.lists(CHUNKS, max_size=3).map(b"".join),
    st.binary(max_size=200),
)
ANSWERS = st.one_of(
    st.builds(
        lambda status, headers, body: b"".join([status, *headers, b"\r\n", body]),
        STATUS_LINES,
        st.lists(HEADERS, max_size=5),
        BODIES,
    ),
    st.binary(max_size=200),
    st.just(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + GOOD),
)


@given(st.tuples(ANSWERS, ANSWERS, ANSWERS))
def test_any_bytes_make_one_sample_a_node(parrots: Parrots, says: tuple[bytes, bytes, bytes]) -> None:
    parrots.says = list(says)
    samples = scrape_all(parrots.nodes, Scrape(timeout_seconds=1), (), {})
    assert sorted(samples) == ["node-0", "node-1", "node-2"]
    for node in parrots.nodes:
        sample = samples[node.name]
        assert sample.address == node.host
        assert (sample.reading is None) == (sample.error is not None)
        assert sample.error is None or re.fullmatch(r"[ -~]{1,200}", sample.error)
        assert not (sample.error or "").startswith("unexpected")
