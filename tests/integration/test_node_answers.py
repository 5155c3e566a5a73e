"""What becomes of requests whose nodes answer oddly, not at all, too late, or that they are full, on both balancers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import socketserver
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import wait_for
from tests.integration.odd_answers import CLOSED, ODD, Odd, OddNode, odd_node, table
from tests.integration.rendered import DEADLINE_SECONDS, Answer, Host, Ingress, Node, ask, ingress, render, serve
from tests.packets import dropped

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
fault = pytest.mark.fault
PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BALANCERS = ("upstream", "work")
# Seconds: the shortest that the preflight allows
SETTINGS: dict[str, Any] = {
    "nginx_ingress_connect_timeout_seconds": 1,
    "nginx_ingress_next_upstream_timeout_seconds": 2,
    "nginx_ingress_send_timeout_seconds": 3,
    "nginx_ingress_read_timeout_seconds": 3,
}
# The settings of pools that the script has by default
DEFAULTS = {"method": "least_conn", "max_fails": 10}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render ingresses of each balancer: with three tries, with one, and one that runs meanwhile, for odd answers."""
    kinds: dict[str, dict[str, Any]] = {"3": {}, "1": {"nginx_ingress_next_upstream_tries": 1}, "odd": {}}
    settings = {
        f"{name}-{kind}": {**SETTINGS, "nginx_ingress_balancer": name, **own}
        for name in BALANCERS
        for kind, own in kinds.items()
    }
    return render(tmp_path_factory.mktemp("rendered"), settings)


@pytest.fixture(params=BALANCERS)
def host(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    """Return the ingress of a balancer, with three tries."""
    return hosts[f"{request.param}-3"]


@contextlib.contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Serve each connection with a handler, and return the port."""
    socketserver.ThreadingTCPServer.request_queue_size = 128
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def post(running: Ingress, body: bytes = b"{}") -> Answer:
    """Send one request."""
    return ask(running.url + PATH, body)


def post_many(running: Ingress, count: int) -> list[int]:
    """Send requests at once, and return the statuses of their answers."""
    with ThreadPoolExecutor(count) as pool:
        return [answer.status for answer in pool.map(lambda _: post(running), range(count))]


def code_of(answer: Answer) -> tuple[int, str]:
    """Return the status of an error that nginx has made, and its code."""
    return answer.status, str(json.loads(answer.body)["error"]["code"])


# --- Odd answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BALANCERS)
def odd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hosts: dict[str, Host]
) -> Iterator[tuple[Ingress, OddNode, Path]]:
    """Run an ingress in front of a node with odd answers."""
    folder = tmp_path_factory.mktemp(request.param)
    with odd_node() as node, ingress(folder, hosts[f"{request.param}-odd"], [node.port]) as running:
        yield running, node, folder


def status_of(client: http.client.HTTPConnection, sent: Odd) -> int:
    """Ask for an odd answer, and return the status of a complete answer, or CLOSED."""
    headers = {"X-Odd": str(ODD.index(sent))}
    if sent.upgrades:
        headers |= {"Connection": "upgrade", "Upgrade": "websocket"}
    try:
        client.request(sent.method, PATH, "{}", headers)
        answer = client.getresponse()
        answer.read()
    except (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionResetError):
        client.close()
        return CLOSED
    return answer.status


def is_at_rest(running: Ingress) -> bool:
    """Tell whether the balancer `work` counts nothing; the other one counts nothing that can be seen."""
    work = ask(f"{running.status_url}/work")
    return work.status == 404 or all(
        (node["streams"], node["pending_bytes"]) == (0, 0) for node in json.loads(work.body)["nodes"]
    )


@pytest.mark.parametrize("sent", ODD, ids=lambda sent: f"{sent.group}-{sent.what}".replace("`", ""))
def test_after_an_odd_answer_the_next_one_on_the_connection_is_right(
    odd: tuple[Ingress, OddNode, Path], sent: Odd
) -> None:
    running, _, _ = odd
    worker = ask(f"{running.status_url}/generation").body.split()[1]
    client = http.client.HTTPConnection("127.0.0.1", running.host.port, timeout=DEADLINE_SECONDS)
    with contextlib.closing(client):
        assert status_of(client, sent) in sent.gets
        for text in (sent.what, "once more"):
            client.request("POST", PATH, text.encode())
            answer = client.getresponse()
            assert (answer.status, json.loads(answer.read())) == (200, {"echo": text})
    wait_for(lambda: is_at_rest(running))
    assert ask(f"{running.status_url}/generation").body.split()[1] == worker
    lines = running.log(2)  # each line is JSON, or this fails
    assert [line["status"] for line in lines[-2:]] == [200, 200]


def test_the_page_has_the_odd_answers_that_are_tested() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "docs/security.md is out of date: python -c 'from tests.integration.odd_answers import table; print(table())' "
        "prints its table"
    )


@fault(
    7,
    "a node sends a `100` with a body, or what is not HTTP",
    sees="vllm-nginx-lb: node 127.0.0.1:… sent no answer, but status 100",
    keeps="the client gets 502, or its connection is closed; its other requests get their own answers",
)
def test_a_forged_answer_reaches_nobody(odd: tuple[Ingress, OddNode, Path], heard: list[str]) -> None:
    running, _, folder = odd
    for sent in ODD:
        if sent.gets[0] in (502, CLOSED) and sent.group in ("Informational answers", "Status lines"):
            with socket.create_connection(("127.0.0.1", running.host.port), DEADLINE_SECONDS) as client:
                head = f"X-Odd: {ODD.index(sent)}\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                client.sendall(f"POST {PATH} HTTP/1.1\r\n{head}".encode())
                with client.makefile("rb") as answer:
                    came = answer.read()
            assert b"FORGED" not in came, sent.what
            assert came.count(b"HTTP/1.1 ") <= 1, sent.what
    heard.append((folder / "error.log").read_text(encoding="utf-8"))


# --- Connections that cannot be made, requests that time out --------------------------------------------------


@fault(
    7,
    "a node's packets are dropped",
    sees="upstream timed out (110: Connection timed out) while connecting to upstream",
    keeps="its requests, which go to the next node after `nginx_ingress_connect_timeout_seconds`",
)
def test_a_connection_that_cannot_be_made_goes_to_the_next_node(tmp_path: Path, host: Host, heard: list[str]) -> None:
    with (
        serve(Node()) as node,
        dropped() as gone,
        ingress(tmp_path, host, [gone, node.port], DEFAULTS) as running,
    ):

        def has_tried_both() -> bool:
            assert post(running).status == 200
            return any("," in line["upstream_addr"] for line in running.log())

        wait_for(has_tried_both, DEADLINE_SECONDS)
    heard.append((tmp_path / "error.log").read_text(encoding="utf-8"))


def test_a_request_that_was_sent_and_timed_out_is_not_sent_again(tmp_path: Path, host: Host) -> None:
    held = threading.Event()
    with (
        serve(Node(held=held)) as first,
        serve(Node(held=held)) as second,
        ingress(tmp_path, host, [first.port, second.port], DEFAULTS) as running,
    ):
        assert code_of(post(running)) == (504, "gateway_timeout")
        assert len(first.seen) + len(second.seen) == 1
        held.set()


def test_a_request_that_a_node_does_not_read_is_not_sent_again(tmp_path: Path, host: Host) -> None:
    connections: list[object] = []
    done = threading.Event()

    class Deaf(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connections.append(self)
            done.wait(DEADLINE_SECONDS)

    with (
        listening(Deaf) as first,
        listening(Deaf) as second,
        ingress(tmp_path, host, [first, second], DEFAULTS) as running,
    ):
        assert code_of(post(running, b"x" * 20_000_000)) == (504, "gateway_timeout")
        assert len(connections) == 1
        done.set()


# --- Tries --------------------------------------------------------------------------------------------------


class Poisoned(socketserver.StreamRequestHandler):
    """A node that a body with `poison` ends. It keeps its connections as long as it can."""

    poisoned: list[int]

    def handle(self) -> None:
        """Answer until there is poison."""
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                length = int(line[15:]) if line.lower().startswith(b"content-length:") else length
            if b"poison" in self.rfile.read(length):
                self.poisoned.append(int(self.server.server_address[1]))  # type: ignore[index]
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize("tries", [1, 3])
def test_a_request_reaches_no_more_nodes_than_the_setting_says(
    tmp_path: Path, hosts: dict[str, Host], tries: int
) -> None:
    poisoned: list[int] = []
    handler = type("Handler", (Poisoned,), {"poisoned": poisoned})
    with contextlib.ExitStack() as nodes:
        ports = [nodes.enter_context(listening(handler)) for _ in range(6)]
        with ingress(tmp_path, hosts[f"upstream-{tries}"], ports, DEFAULTS) as running:
            assert set(post_many(running, 60)) == {200}  # they leave what connections the ingress keeps
            assert post(running, b"poison").status == 502
            assert len(poisoned) == tries


# --- Short trouble of all nodes, and full nodes -----------------------------------------------------------------


@fault(
    7,
    "all nodes reset their connections for some seconds (balancer `upstream`)",
    sees="Connection reset by peer",
    keeps="the first request after that is answered, although nginx has left all nodes out",
)
def test_short_trouble_of_all_nodes_ends_with_its_cause(
    tmp_path: Path, hosts: dict[str, Host], heard: list[str]
) -> None:
    healed = threading.Event()

    class Resetting(Poisoned):
        def handle(self) -> None:
            if healed.is_set():
                super().handle()
                return
            self.rfile.readline()
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()

    with contextlib.ExitStack() as nodes:
        ports = [nodes.enter_context(listening(Resetting)) for _ in range(3)]
        with ingress(tmp_path, hosts["upstream-3"], ports, DEFAULTS) as running:
            assert set(post_many(running, 60)) == {502}
            healed.set()
            assert [post(running).status for _ in range(20)] == [200] * 20
    heard.append((tmp_path / "error.log").read_text(encoding="utf-8"))


def test_nodes_that_said_that_they_are_full_are_asked_again_at_once(tmp_path: Path, hosts: dict[str, Host]) -> None:
    with (
        serve(Node(status=503)) as first,
        serve(Node(status=503)) as second,
        ingress(tmp_path, hosts["upstream-3"], [first.port, second.port], DEFAULTS) as running,
    ):
        assert set(post_many(running, 60)) == {503}, "never nginx's 502"
        first.status = second.status = 200
        assert [post(running).status for _ in range(20)] == [200] * 20


@fault(
    7,
    "all nodes have as many requests as `vllm_max_conns` allows",
    sees="no live upstreams while connecting to upstream",
    keeps="the requests that they have; others get 503 with `Retry-After`",
)
def test_full_nodes_are_a_503_that_says_when_to_come_back(tmp_path: Path, host: Host, heard: list[str]) -> None:
    held = threading.Event()
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(serve(Node(held=held))) for _ in range(2)]
        ports = [node.port for node in nodes]
        running = stack.enter_context(ingress(tmp_path, host, ports, DEFAULTS | {"max_conns": 1}))
        with ThreadPoolExecutor() as pool:
            taken = [pool.submit(post, running) for _ in nodes]
            wait_for(lambda: all(len(node.seen) == 1 for node in nodes))
            refused = post(running)
            assert code_of(refused) == (503, "service_unavailable")
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert refused.headers["X-Request-Id"]
            held.set()
            assert [answer.result().status for answer in taken] == [200, 200]
        wait_for(lambda: post(running).status == 200)
        assert running.log(3)[0]["status"] == 503
    heard.append((tmp_path / "error.log").read_text(encoding="utf-8"))
