"""The model of nginx that the benchmark uses, against the real nginx: the same requests, the same choices."""

from __future__ import annotations

import random
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from benchmarks.virtual.nginx_model import Nginx, Ticket
from tests.integration.conftest import respond, wait_for

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from tests.integration.conftest import Stack

METHODS = {"round_robin": "", "least_conn": "least_conn;"}


@pytest.mark.parametrize("weights", [(1, 1, 1), (100, 60, 10), (7, 3, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_the_model_chooses_as_nginx_does(stack: Stack, method: str, weights: tuple[int, ...]) -> None:
    released, reached = threading.Event(), list[str]()

    def answer_later(name: str, handler: BaseHTTPRequestHandler) -> None:
        reached.append(name)
        if "X-Hold" in handler.headers:
            released.wait(30)
        respond(handler, b"ok")

    servers = ""
    for node, weight in zip(stack.nodes, weights, strict=True):
        node.answer = lambda handler, name=node.name: answer_later(name, handler)
        servers += f"server 127.0.0.1:{node.port} weight={weight};"
    stack.upstream.write_text(
        f'map "" $vllm_nginx_lb_generation {{ default "model"; }}\n'
        f"upstream llm_cluster {{ zone llm_cluster 1m; {METHODS[method]} {servers} }}\n"
    )
    stack.restart()

    chance = random.Random(f"{method} {weights}")  # noqa: S311 - to be repeated
    model = Nginx(weights, method=method, chance=chance)
    held: list[Ticket] = []
    connections: list[socket.socket] = []
    expected: list[str] = []
    try:
        for _ in range(40):
            hold = len(held) < 20 and chance.random() < 0.5
            ticket = model.choose(set(), 0.0)
            assert ticket
            expected.append(stack.nodes[ticket.server].name)
            connections.append(request(stack.ingress_port, hold=hold))
            wait_for(lambda: len(reached) == len(expected))
            if hold:
                held.append(ticket)
            else:
                with connections.pop() as connection, connection.makefile("rb") as answer:
                    answer.read()  # after the end, nginx has released the request
                model.free(ticket, 0.0, failed=False)
        assert reached == expected
    finally:
        released.set()
        for connection in connections:
            connection.close()


def request(port: int, *, hold: bool) -> socket.socket:
    """Send a request, and leave its connection open."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    wanted = "X-Hold: yes\r\n" if hold else ""
    connection.sendall(f"GET /metrics HTTP/1.0\r\nHost: test\r\n{wanted}\r\n".encode())
    return connection
