"""What the balancer `work` counts as pending work, and until when, of answers that are streamed and others."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import queue
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import FakeNode, free_port, running, wait_for
from tests.integration.test_work_balancer import WorkStack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

NAMES = ("node-2", "node-3", "node-4", "node-5")
END = b""
CREATED = b'event: response.created\ndata: {"response": {"instructions": "short"}, "type": "response.created"}\n\n'
IN_PROGRESS = b'event: response.in_progress\ndata: {"sequence_number": 1}\n\n'
COMMENT = b": keep-alive\n\n"
TOKEN = b'data: {"choices": [{"index": 0, "text": "word "}]}\n\n'
ERROR = b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n'


class CountedNode(FakeNode):
    """A node whose answers a request asks for by X-Answer: `at once`, `held`, or a `stream`, maybe `compressed`."""

    def __init__(self, name: str, address: str) -> None:
        """Start with nothing to stream."""
        super().__init__(name, address)
        self.pieces: queue.Queue[bytes] = queue.Queue()
        self.released = threading.Event()
        self.held = self.streams = 0
        self.posted = self.answer_post

    def stop(self) -> None:
        """Refuse connections from now on, and end all answers."""
        self.released.set()
        self.pieces.put(END)
        super().stop()

    def answer_post(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer, while the client is there."""
        with contextlib.suppress(OSError, queue.Empty):
            kind = handler.headers["X-Answer"]
            if kind.endswith("stream"):
                self.stream(handler)
                return
            if kind == "held":
                self.held += 1
                self.released.wait(30)
            body = json.dumps({"node": self.name}).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

    def stream(self, handler: BaseHTTPRequestHandler) -> None:
        """Send the headers at once, as vLLM does, and then the pieces that the test gives."""
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        if handler.headers["X-Answer"].startswith("compressed"):
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.flush()
        self.streams += 1
        while piece := self.pieces.get(timeout=30):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")


class CountedStack(WorkStack):
    """An nginx with our Lua in it, and nodes that answer as a request asks."""

    def node(self, name: str) -> CountedNode:
        """Return a node."""
        found = next(node for node in self.nodes if node.name == name)
        assert isinstance(found, CountedNode)
        return found

    def ask(self, kind: str = "at once", size: int = 100, body: bytes | None = None) -> bytes:
        """Send a prompt and read the answer to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ingress_port, timeout=40)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", body or b"x" * size, {"X-Answer": kind})
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()

    def start_with(self, **settings: object) -> None:
        """Start again with other settings of the Lua code."""
        self.settings = settings
        self.restart()


@pytest.fixture
def counted(tmp_path: Path, heard: list[str]) -> Iterator[CountedStack]:
    """Start nginx and four nodes."""
    (tmp_path / "upstream").mkdir()
    nodes: list[FakeNode] = [CountedNode(name, f"127.0.0.{name[-1]}") for name in NAMES]
    it = CountedStack(tmp_path, nodes, free_port(), free_port(), "nginx", heard=heard)
    it.write_nginx()
    with running(it):
        yield it


def test_long_prompts_that_are_not_streamed_do_not_keep_others_from_their_nodes(counted: CountedStack) -> None:
    counted.start_with(prefill_bytes_per_second=100_000)
    counted.publish(dict.fromkeys(NAMES, 100))
    with ThreadPoolExecutor(3) as pool:
        long = []
        for _ in NAMES[1:]:  # one after another: two workers that choose in the same moment can choose the same node
            long.append(pool.submit(counted.ask, "held", 60_000))
            wait_for(lambda: sum(streams for _, streams in counted.totals().values()) == len(long))
        assert max(streams for _, streams in counted.totals().values()) == 1
        wait_for(lambda: all(pending == 0 for pending, _ in counted.totals().values()))  # their answers have not begun
        busy = {name for name, (_, streams) in counted.totals().items() if streams}
        [free] = set(NAMES) - busy
        assert json.loads(counted.ask())["node"] == free  # an open stream counts a little
        with ThreadPoolExecutor(8) as others:
            held = [others.submit(counted.ask, "held") for _ in range(8)]
            wait_for(lambda: sum(streams for _, streams in counted.totals().values()) == 11)
            streams = {name: count for name, (_, count) in counted.totals().items()}
            assert set(streams.values()) <= {2, 3, 4}, "the nodes share the requests"
            for name in NAMES:
                counted.node(name).released.set()
            for each in [*long, *held]:
                each.result()
    wait_for(counted.idle)


def test_a_padded_prompt_is_pending_for_a_bounded_time(counted: CountedStack) -> None:
    counted.start_with(prefill_bytes_per_second=100_000)
    counted.publish({"node-2": 100, "node-3": 100})
    padded = json.dumps({"prompt": "hi"}).encode() + b" " * 1_000_000
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(counted.ask, "held", body=padded)
        wait_for(lambda: sum(streams for _, streams in counted.totals().values()) == 1)
        assert max(pending for pending, _ in counted.totals().values()) <= 65536
        wait_for(lambda: all(pending == 0 for pending, _ in counted.totals().values()))
        for name in NAMES:
            counted.node(name).released.set()
        asked.result()
    wait_for(counted.idle)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_is_pending_until_its_first_output(counted: CountedStack, line_end: bytes) -> None:
    counted.start_with(prefill_bytes_per_second=1_000_000)  # it would be over at once by the time alone
    counted.publish({"node-2": 100})
    node = counted.node("node-2")
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(counted.ask, "stream", 60_000)
        wait_for(lambda: node.streams == 1)
        silent = (COMMENT + CREATED + IN_PROGRESS + ERROR).replace(b"\n", line_end)
        for at in range(len(silent)):
            node.pieces.put(silent[at : at + 1])
        node.pieces.put(TOKEN[:3])
        counted.ask()  # choices and ticks end what is due
        counted.publish({"node-2": 90}, "0b")  # each worker has had a tick
        assert counted.totals() == {"node-2": (60_000, 1)}
        token = TOKEN.replace(b"\n", line_end)
        node.pieces.put(token[3:])
        wait_for(lambda: counted.totals() == {"node-2": (0, 1)})
        node.pieces.put(END)
        assert asked.result().endswith(token)
    wait_for(counted.idle)


def test_a_compressed_stream_is_pending_for_as_long_as_the_node_probably_needs(counted: CountedStack) -> None:
    counted.start_with(prefill_bytes_per_second=1_000_000)
    counted.publish({"node-2": 100})
    node = counted.node("node-2")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(counted.ask, "compressed stream", 60_000)
        wait_for(lambda: node.streams == 1)
        wait_for(lambda: counted.totals() == {"node-2": (0, 1)})
        short = gzip.compress(TOKEN)
        node.pieces.put(short)
        node.pieces.put(END)
        assert asked.result() == short
    wait_for(counted.idle)
    assert counted.known()["node-2"]["answers"] == {"2xx": 1}


@pytest.mark.fault(
    7,
    "a node sends the headers and the comments of streams, and no output",
    sees="…gets no requests for 0.5 s: it has begun answers and sends nothing",
    keeps="it is ejected after `nginx_ingress_work_stall_seconds`, as a node that sends nothing at all",
)
def test_a_node_that_sends_only_comments_is_stalled(counted: CountedStack) -> None:
    counted.start_with(stall_seconds=0.3)
    counted.publish({"node-2": 100, "node-3": 100})
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(counted.ask, "stream")
        wait_for(lambda: sum(counted.node(name).streams for name in NAMES) == 1)
        [node] = [counted.node(name) for name in NAMES if counted.node(name).streams]
        node.pieces.put(COMMENT)
        wait_for(lambda: counted.known()[node.name]["backoff_seconds"] > 0)
        node.pieces.put(TOKEN)
        wait_for(lambda: counted.known()[node.name]["backoff_seconds"] == 0)
        node.pieces.put(END)
        asked.result()
    wait_for(counted.idle)
    counted.heard.append(counted.log())


def test_a_worker_that_a_reload_has_ended_leaves_no_prompt_pending(counted: CountedStack) -> None:
    counted.publish({"node-2": 100})
    node = counted.node("node-2")
    workers = counted.worker_pids()
    with ThreadPoolExecutor(2) as pool:
        held, streamed = pool.submit(counted.ask, "held", 5000), pool.submit(counted.ask, "stream", 700)
        wait_for(lambda: (node.held, node.streams) == (1, 1))
        assert counted.totals() == {"node-2": (5700, 2)}
        subprocess.run([*counted.nginx, "-s", "reload"], check=True)
        wait_for(lambda: bool(counted.worker_pids() - workers))
        wait_for(lambda: counted.totals() == {"node-2": (700, 2)})
        node.pieces.put(TOKEN)
        wait_for(lambda: counted.totals() == {"node-2": (0, 2)})
        node.pieces.put(END)
        node.released.set()
        held.result()
        streamed.result()
    wait_for(counted.idle)
