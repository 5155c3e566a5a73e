"""What one client's bodies can do to the other clients, with the balancer `work`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import LUA, answers, fetch, free_port, wait_for
from tests.integration.test_work_balancer import POOL, WorkStack, file_of, streaming, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

__all__ = ["work"]
# The search for the model takes longest in a body of short keys.
LONG = b"{" + b'"a":1,' * 5_000_000 + b'"model": "small"}'
LARGE = 1_000_000  # bytes: such a body is counted
SHORT = b"{" + b'"a":1,' * 20_000 + b'"model": "small"}'  # more than a window, so it needs a place too
# The frames of HTTP/2 (RFC 9113) that these tests send
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_HEADERS, END_STREAM = 4, 1


@pytest.fixture
def entry(work: WorkStack) -> WorkStack:
    """Run one worker that looks into one body at once, and lets one wait; h2_port is for HTTP/2."""
    work.workers = 1
    work.settings = {"bodies_at_once": 1, "bodies_waiting": 1, "upload_seconds": 0}
    restart(work)
    return work


def restart(it: WorkStack, **settings: float) -> None:
    """Start nginx anew, with further settings and weights that name a model."""
    it.settings |= settings
    it.config |= {name: it.config.get(name) or free_port() for name in ("h1_port", "h2_port")}
    it.write_nginx(
        f"server {{ listen 127.0.0.1:{it.config['h2_port']} http2; listen 127.0.0.1:{it.config['h1_port']}; "
        f"client_max_body_size 64m; include {LUA}/server.conf; location / {{ proxy_pass http://{POOL}; }} "
        "location = /places { access_by_lua_block { return } "
        'content_by_lua_block { ngx.say(require("vllm_nginx_lb.worker").bodies.places:count()) } } }'
    )
    it.stop()
    content = file_of(it, {"node-2": 100}, "0a")
    content["pools"][0]["models"] = ["small"]
    it.write(json.dumps(content))
    it.start()
    wait_for(lambda: fetch(it.status_port, "/generation").startswith("0a "))


def post(it: WorkStack, body: bytes) -> tuple[int, bytes, str | None]:
    """Send a body. Return the status, the answer and its Retry-After."""
    connection = http.client.HTTPConnection("127.0.0.1", it.ingress_port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers["Retry-After"]


def places(it: WorkStack) -> int:
    """Return how many places are free in the worker, less how many bodies wait."""
    return int(fetch(it.config["h1_port"], "/places"))


def bodies_counted(it: WorkStack) -> list[str]:
    """Return the counts of large bodies in nginx's shared memory."""
    return [key for key in fetch(it.status_port, "/keys").split("|") if key.startswith("bodies:")]


@contextlib.contextmanager
def long_body(it: WorkStack) -> Iterator[Future[tuple[int, bytes, str | None]]]:
    """Let nginx look into a long body meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(post, it, LONG)
        wait_for(lambda: places(it) == 0)
        yield sent
        assert sent.result()[0] == 200


def test_others_are_answered_while_a_long_body_is_looked_into(entry: WorkStack) -> None:
    with long_body(entry) as sent:
        answered = 0
        while not sent.done():
            assert fetch(entry.status_port, "/generation").startswith("0a ")
            answered += 1
    assert answered > 10


def test_a_body_that_finds_no_place_is_refused_and_may_come_back(entry: WorkStack) -> None:
    restart(entry, bodies_waiting=0)
    with long_body(entry):
        status, answer, retry_after = post(entry, SHORT)
        assert (status, json.loads(answer)["error"]["code"], retry_after) == (503, "service_unavailable", "1")
        assert post(entry, b'{"model": "small"}')[0] == 200, "a body of one window needs no place"
    assert post(entry, SHORT)[0] == 200
    wait_for(entry.idle)


def test_whoever_waits_too_long_for_a_place_is_refused(entry: WorkStack) -> None:
    restart(entry, body_wait_seconds=0.001)
    with long_body(entry):
        assert post(entry, SHORT)[0] == 503
    wait_for(lambda: places(entry) == 1)


# --- Clients that leave --------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def over_h2(it: WorkStack) -> socket.socket:
    """Send the headers of a POST over HTTP/2."""
    fields = {":method": "POST", ":scheme": "http", ":path": "/v1/completions", ":authority": "localhost"}
    block = b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )
    connection = socket.create_connection(("127.0.0.1", it.config["h2_port"]), 30)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    connection.sendall(preface + frame(HEADERS, END_HEADERS, 1, block))
    return connection


def send_h2(it: WorkStack) -> socket.socket:
    """Send a whole body that needs a place over HTTP/2, within the first window of its flow control."""
    connection = over_h2(it)
    body = SHORT[:60_000]
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    connection.sendall(b"".join(frame(DATA, 0, 1, piece) for piece in pieces) + frame(DATA, END_STREAM, 1, b""))
    return connection


def send_h1(it: WorkStack, body: bytes = SHORT) -> socket.socket:
    """Send a whole request over HTTP/1."""
    connection = socket.create_connection(("127.0.0.1", it.ingress_port), 30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def leave_the_queue(it: WorkStack) -> None:
    """Leave the queue."""
    with long_body(it), send_h1(it):
        wait_for(lambda: places(it) == -1)


def leave_while_looked_into(it: WorkStack) -> None:
    """Send a long body and leave at once."""
    with send_h1(it, LONG):
        wait_for(lambda: places(it) == 0)


def leave_in_the_middle(it: WorkStack) -> None:
    """Leave before the body has ended."""
    with socket.create_connection(("127.0.0.1", it.ingress_port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{")


def reset_a_stream(it: WorkStack) -> None:
    """Reset a stream of HTTP/2 in the queue, then close its connection."""
    with long_body(it), send_h2(it) as connection:
        wait_for(lambda: places(it) == -1)
        connection.sendall(frame(RST_STREAM, 0, 1, (8).to_bytes(4)))


def close_http2(it: WorkStack) -> None:
    """Close a connection of HTTP/2 whose stream is in the queue, and one whose body has not ended."""
    with long_body(it), over_h2(it), send_h2(it):
        wait_for(lambda: places(it) == -1)


def kill_the_worker(it: WorkStack) -> None:
    """Kill the worker while it looks into a body and another one waits."""
    [before] = it.worker_pids()
    with send_h1(it, LONG), send_h1(it):
        wait_for(lambda: places(it) == -1)
        os.kill(int(before), signal.SIGKILL)
        wait_for(lambda: it.worker_pids() not in (set(), {before}))


@pytest.mark.parametrize(
    "leave",
    [
        leave_the_queue,
        leave_while_looked_into,
        leave_in_the_middle,
        reset_a_stream,
        close_http2,
        kill_the_worker,
    ],
)
def test_whoever_leaves_leaves_no_count_and_no_place_behind(
    entry: WorkStack, leave: Callable[[WorkStack], None]
) -> None:
    leave(entry)
    wait_for(lambda: answers(entry.config["h1_port"]) and places(entry) == 1)
    wait_for(entry.idle)
    wait_for(lambda: not bodies_counted(entry))
    assert [post(entry, SHORT)[0] for _ in range(3)] == [200] * 3


def test_a_killed_worker_leaves_no_count_of_bodies_behind(entry: WorkStack) -> None:
    entry.workers = 2
    restart(entry, large_requests=2)
    node = streaming(entry, "node-2")
    node.begin.clear()
    with with_length(entry), send_h1(entry, b'{"model": "small"}'.ljust(LARGE)):  # one is received, one is at its node
        wait_for(lambda: entry.totals()["node-2"][1] == 1)
        wait_for(lambda: post(entry, b"x" * LARGE)[0] == 429)
        for pid in entry.worker_pids():
            os.kill(int(pid), signal.SIGKILL)
        node.begin.set()
        wait_for(lambda: answers(entry.status_port) and not bodies_counted(entry))
        wait_for(entry.idle)
        assert post(entry, b'{"model": "small"}'.ljust(LARGE))[0] == 200
    wait_for(lambda: not bodies_counted(entry))


# --- Uploads that do not end ---------------------------------------------------------------------------------------


def with_length(it: WorkStack) -> socket.socket:
    """Begin a body with a length."""
    connection = socket.create_connection(("127.0.0.1", it.ingress_port), 30)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n")
    return connection


def with_chunks(it: WorkStack) -> socket.socket:
    """Begin a body without a length."""
    connection = socket.create_connection(("127.0.0.1", it.ingress_port), 30)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    return connection


@pytest.mark.parametrize(
    ("begin", "piece"), [(with_length, b"x"), (with_chunks, b"1\r\nx\r\n"), (over_h2, frame(DATA, 0, 1, b"x"))]
)
def test_an_upload_ends_even_if_it_never_pauses_for_long(
    entry: WorkStack, begin: Callable[[WorkStack], socket.socket], piece: bytes
) -> None:
    restart(entry, upload_seconds=0.5)
    ended = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                connection.sendall(piece)

    with begin(entry) as connection, ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        with contextlib.suppress(ConnectionResetError):
            while answer := connection.recv(65536):
                # HTTP/2 tells the end of a stream, and keeps the connection for others.
                if frame(RST_STREAM, 0, 1, b"")[3:] in answer:
                    break
        ended.set()
    assert post(entry, SHORT)[0] == 200
    wait_for(entry.idle)
    assert streaming(entry, "node-2").posts == 1, "only the last one reached a node"
