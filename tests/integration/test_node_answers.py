"""What becomes of requests whose nodes answer oddly, not at all, too late, or that they are full, on both balancers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import free_port, wait_for
from tests.integration.odd_answers import CLOSED, ODD, Odd, OddNode, odd_node, table
from tests.integration.rendered import (
    DEADLINE_SECONDS,
    Answer,
    Host,
    Ingress,
    Node,
    ask,
    ingress,
    nginx_command,
    render,
    serve,
)
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
    """Render ingresses of each balancer: with three tries, with one, with other settings, and for odd answers."""
    kinds: dict[str, dict[str, Any]] = {
        "3": {},
        "1": {"nginx_ingress_next_upstream_tries": 1},
        "500": {"nginx_ingress_next_upstream_500_enabled": True},
        "patient": {"nginx_ingress_read_timeout_seconds": 600},
        "odd": {},
    }
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


# --- Connections that break while nginx waits ---------------------------------------------------------------------


class Slept(socketserver.StreamRequestHandler):
    """A node whose host sleeps when it has read a request with `sleep`, and wakes up to reset the connection."""

    sleeps_seconds: float
    slept: list[tuple[int, bool]]  # the node's port, and whether the connection had had a request before

    def handle(self) -> None:
        """Answer until the host sleeps."""
        is_kept = False
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                length = int(line[15:]) if line.lower().startswith(b"content-length:") else length
            if b"sleep" in self.rfile.read(length):
                self.slept.append((int(self.server.server_address[1]), is_kept))  # type: ignore[index]
                threading.Event().wait(self.sleeps_seconds)
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.request.close()
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
            is_kept = True


@fault(
    7,
    "a node's host sleeps, and resets its connections when it wakes up",
    sees="Connection reset by peer) while reading response header from upstream",
    keeps="within `nginx_ingress_next_upstream_timeout_seconds` another node gets the request; later no other node "
    "gets it, because this one may have begun, and the client gets 502",
)
@pytest.mark.parametrize(("balancer", "is_kept"), [("upstream", False), ("work", False), ("work", True)])
@pytest.mark.parametrize(
    "sleeps_seconds",
    [0.1, SETTINGS["nginx_ingress_next_upstream_timeout_seconds"] + 0.3],
    ids=["within-the-time-for-tries", "after-it"],
)
def test_a_connection_that_is_reset_while_nginx_waits(
    tmp_path: Path, hosts: dict[str, Host], heard: list[str], sleeps_seconds: float, balancer: str, *, is_kept: bool
) -> None:
    slept: list[tuple[int, bool]] = []
    handler = type("Handler", (Slept,), {"slept": slept, "sleeps_seconds": sleeps_seconds})
    got: list[Answer] = []
    with (
        listening(handler) as sleeper,
        listening(Poisoned) as other,
        ingress(tmp_path, hosts[f"{balancer}-3"], [sleeper, other], DEFAULTS) as running,
    ):

        def has_slept() -> bool:
            got.append(post(running, b"sleep"))
            return bool(slept)

        if is_kept:
            assert set(post_many(running, 40)) == {200}  # they leave connections
        wait_for(has_slept)
        assert slept == [(sleeper, is_kept)]
        if sleeps_seconds < SETTINGS["nginx_ingress_next_upstream_timeout_seconds"]:
            assert (got[-1].status, got[-1].body) == (200, b"ok")
        else:
            assert code_of(got[-1]) == (502, "bad_gateway")
        wait_for(lambda: is_at_rest(running))
        if balancer == "work":
            [node] = [it for it in json.loads(ask(f"{running.status_url}/work").body)["nodes"] if it["ejections"]]
            assert (node["node"], node["ejections"]) == (f"node-{sleeper}", {"broken": 1})
    heard.append((tmp_path / "error.log").read_text(encoding="utf-8"))


# In a network of its own, with a kernel that asks for silent hosts after a second: nginx, and a node whose host
# vanishes when the node has a request. Prints the status of the answer and its body.
VANISH = """
import json, subprocess, sys, threading, time, urllib.error, urllib.request
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
port, node_port, *nginx = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
for name, value in (("time", 1), ("intvl", 1), ("probes", 2)):
    Path(f"/proc/sys/net/ipv4/tcp_keepalive_{name}").write_text(str(value))
rules = f"table ip test {{ chain input {{ type filter hook input priority 0; tcp dport {node_port} drop; }}; }}"
class Vanishing(BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        subprocess.run(["nft", rules], check=True)
        threading.Event().wait()
node = ThreadingTCPServer(("127.0.0.1", int(node_port)), Vanishing)
node.daemon_threads = True
threading.Thread(target=node.serve_forever, daemon=True).start()
process = subprocess.Popen(nginx)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def ask(path, body=None):
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", body, timeout=30) as found:
            return [found.status, found.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except OSError:
        return [None, ""]
deadline = time.monotonic() + 20
while ask("/health")[0] != 200 and time.monotonic() < deadline:
    pass
print(json.dumps(ask("/v1/completions", b"{}")))
process.terminate()
process.wait()
"""


@fault(
    7,
    "a node's host vanishes while it computes, and the kernel looks for silent hosts (`net.ipv4.tcp_keepalive_time`)",
    sees="(110: Connection timed out) while reading response header from upstream",
    keeps="the client gets 502 when the host has not answered, and does not wait for "
    "`nginx_ingress_read_timeout_seconds`",
)
@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_host_that_vanishes_is_found_by_the_kernel(
    tmp_path: Path, hosts: dict[str, Host], heard: list[str], balancer: str
) -> None:
    host, node = hosts[f"{balancer}-patient"], free_port()
    with ingress(tmp_path, host, [node], DEFAULTS):
        pass  # writes the upstream file
    within = ["unshare", "--map-root-user", "--net", sys.executable, "-c", VANISH]
    command = [*within, str(host.port), str(node), *nginx_command(tmp_path, host)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, body = json.loads(done.stdout)
    assert (status, json.loads(body)["error"]["code"]) == (502, "bad_gateway")
    heard.append((tmp_path / "error.log").read_text(encoding="utf-8"))


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


def test_a_session_leaves_its_home_while_nginx_has_left_that_out(tmp_path: Path, hosts: dict[str, Host]) -> None:
    broken = threading.Event()
    reached: list[int] = []

    class Breaking(Poisoned):
        def handle(self) -> None:
            reached.append(int(self.server.server_address[1]))  # type: ignore[index]
            if not broken.is_set():
                super().handle()

    settings = {"method": "consistent_hash", "hash_header": "X-Session-Id", "max_fails": 3, "fail_timeout_seconds": 5}
    with (
        listening(Breaking) as first,
        serve(Node()) as second,
        serve(Node()) as third,
        ingress(tmp_path, hosts["upstream-3"], [first, second.port, third.port], settings) as running,
    ):

        def node_of(session: int) -> int:
            """Return the port of the node that answers a session."""
            body = ask(running.url + PATH, b"{}", {"X-Session-Id": str(session)}).body
            return first if body == b"ok" else int(json.loads(body)["port"])

        homes = {session: node_of(session) for session in range(40)}
        assert len(set(homes.values())) == 3
        movers = [session for session, home in homes.items() if home == first]
        broken.set()
        for session in movers[:1] * 3:
            assert node_of(session) != first, "it is tried on the next node"
        before = len(reached)
        away = {session: {node_of(session), node_of(session)} for session in movers}
        assert len(reached) == before
        assert all(len(nodes) == 1 for nodes in away.values()), "each has one other node meanwhile"
        assert all(node_of(session) == home for session, home in homes.items() if home != first)
        broken.clear()
        wait_for(lambda: node_of(movers[0]) == first)
        assert {node_of(session) for session in movers} == {first}


# What vLLM answers when it shuts down, when its engine is dead, and to a request that it cannot compute.
SHUTS_DOWN = {"error": {"message": "cannot schedule new futures after shutdown", "code": 500}}
ENGINE_DEAD = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
OWN_FAULT = {"error": {"message": "list index out of range", "code": 500}}


@pytest.mark.parametrize("is_retried", [False, True])
@pytest.mark.parametrize("says", [SHUTS_DOWN, ENGINE_DEAD, OWN_FAULT], ids=["shuts-down", "engine-dead", "own-fault"])
@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_500_is_tried_elsewhere_if_the_operator_allows_it_whatever_its_body_is(
    tmp_path: Path, hosts: dict[str, Host], balancer: str, says: dict[str, Any], *, is_retried: bool
) -> None:
    with (
        serve(Node(status=500, answer=says)) as dying,
        serve(Node()) as well,
        ingress(tmp_path, hosts[f"{balancer}-{'500' if is_retried else '3'}"], [dying.port, well.port]) as running,
    ):

        def has_met_it() -> bool:
            answers.append(post(running))
            return bool(dying.seen)

        answers: list[Answer] = []
        wait_for(has_met_it)
        met = answers[-1]
        if is_retried:
            assert (met.status, json.loads(met.body)) == (200, {"port": well.port})
        else:
            assert (met.status, json.loads(met.body)) == (500, says)
        well.status, well.answer = 500, says  # now each node answers so
        wait_for(lambda: is_at_rest(running))
        before = len(dying.seen) + len(well.seen)
        everywhere = post(running)
        assert (everywhere.status, json.loads(everywhere.body)) == (500, says), "the node's own answer"
        assert len(dying.seen) + len(well.seen) - before == (2 if is_retried else 1)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_stream_that_is_an_error_is_not_tried_elsewhere(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    event = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(ENGINE_DEAD).encode()
    reached: list[object] = []

    class Dead(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            reached.append(self)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + event)

    with (
        listening(Dead) as first,
        listening(Dead) as second,
        ingress(tmp_path, hosts[f"{balancer}-500"], [first, second]) as running,
    ):
        answer = post(running)
        assert (answer.status, answer.body) == (200, event)
        assert len(reached) == 1


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
