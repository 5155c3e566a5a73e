"""What becomes of requests at nodes that answer badly, with the balancer `work` and a real nginx."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import fetch, respond, wait_for
from tests.integration.test_work_balancer import POOL, WorkStack, streaming, with_workers, work

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import BaseHTTPRequestHandler

__all__ = ["work"]  # a fixture

ANSWER = b'{"id": "1"}'
EVERYBODY = {"node-2": 100, "node-3": 100, "node-4": 100}
FULL = json.dumps(
    {"error": {"message": "The server is full.", "type": "ServiceUnavailableError", "code": 503}}
).encode()


def fault(what: str, sees: str, keeps: str = "the other nodes answer") -> pytest.MarkDecorator:
    """Mark a test as one of a node's faults."""
    return pytest.mark.fault(7, what, sees=sees, keeps=keeps)


def restart(it: WorkStack, extra: str = "", **settings: Any) -> None:
    """Start nginx again with other settings, with all nodes, and with further lines for its configuration."""
    it.settings = settings
    it.restart(extra)
    it.publish(EVERYBODY)


@dataclass
class Behaviour:
    """What a node answers to each POST, at once; `posts` counts them."""

    status: int = 200
    body: bytes = b'{"error": {"message": "x"}}'
    content_type: str = "application/json"
    posts: int = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.posts += 1
        respond(handler, self.body, self.status, self.content_type)


def set_behaviour(it: WorkStack, name: str, behaviour: Callable[[BaseHTTPRequestHandler], None]) -> None:
    """Let a node answer POSTs differently from now on."""
    streaming(it, name).posted = behaviour


def answers_of(it: WorkStack, name: str) -> dict[str, float]:
    """Return what nginx has counted of a node's answers, by status, as Prometheus sees it."""
    return {
        sample.labels["status"]: sample.value
        for family in text_string_to_metric_families(fetch(it.status_port, "/work/metrics"))
        for sample in family.samples
        if sample.name == "vllm_nginx_lb_work_answers_total" and sample.labels["node"] == name
    }


def ejections_of(it: WorkStack, name: str) -> dict[str, float]:
    """Return how often nginx has ejected a node, by cause."""
    counted: dict[str, float] = it.known()[name]["ejections"]
    return counted


def ask_together(it: WorkStack, requests: int, clients: int = 12) -> Counter[int]:
    """Send requests, each client one after another, and count the statuses."""
    with ThreadPoolExecutor(clients) as pool:
        return Counter(answer.status for answer in pool.map(lambda _: it.post(500), range(requests)))


@pytest.mark.parametrize(
    ("status", "cause", "reason"),
    [
        pytest.param(status, cause, reason, marks=fault(f"answers each request with {status} at once", sees))
        for status, cause, reason in [
            (500, "errors", "its answers are errors, and another node's are not"),
            (401, "refusals", "it refuses requests, and another node does not"),
            (403, "refusals", "it refuses requests, and another node does not"),
            (404, "refusals", "it refuses requests, and another node does not"),
            (429, "refusals", "it refuses requests, and another node does not"),
        ]
        for sees in [f"…gets no requests for 0.5 s: {reason}"]
    ],
)
def test_a_node_that_answers_fast_and_badly_draws_few_requests(
    work: WorkStack, status: int, cause: str, reason: str
) -> None:
    work.publish(EVERYBODY)
    liar = Behaviour(status)
    set_behaviour(work, "node-4", liar)
    slow = threading.Event()

    def answer_slowly(handler: BaseHTTPRequestHandler) -> None:
        """Answer after a moment, as a node that computes."""
        slow.wait(0.05)
        respond(handler, ANSWER)

    for name in ("node-2", "node-3"):
        set_behaviour(work, name, answer_slowly)
    seen = ask_together(work, 400)
    assert seen[200] + seen[status] == 400
    # It is fair to try a third of the first ones: it drew nine of ten before.
    assert 5 <= liar.posts < 60, seen
    assert ejections_of(work, "node-4")[cause] >= 1
    assert work.known()["node-4"]["ejected_for"] == cause
    assert answers_of(work, "node-4") == {str(status): liar.posts}
    assert reason in work.log()
    work.heard.append(work.log())
    wait_for(work.idle)
    liar.status, liar.body = 200, ANSWER
    wait_for(lambda: work.post().status == 200 and work.known()["node-4"].get("ejected_for") is None)


def answer_with_events(*events: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return what answers each request with a stream of these events."""
    body = b"".join(b"data: %s\n\n" % event for event in events)
    return lambda handler: respond(handler, body, 200, "text/event-stream")


def break_off(handler: BaseHTTPRequestHandler) -> None:
    """Send less than the headers announce, and close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "1"')
    handler.close_connection = True


def break_off_chunks(handler: BaseHTTPRequestHandler) -> None:
    """Send a chunk, and close the connection."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"4\r\nword\r\n")
    handler.close_connection = True


def break_off_stream(handler: BaseHTTPRequestHandler) -> None:
    """Begin a stream with output, and close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\ndata: %b\n\n\r\n" % (len(WORD) + 8, WORD))
    handler.close_connection = True


def reset_stream(handler: BaseHTTPRequestHandler) -> None:
    """Begin a stream with output, and reset the connection."""
    break_off_stream(handler)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


ERROR = b'{"error": {"message": "EngineCore encountered an issue.", "code": 500}}'
WORD, DONE = b'{"choices": [{"text": "word"}]}', b"[DONE]"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        pytest.param(
            answer,
            label,
            marks=fault(does, "…gets no requests for 0.5 s: its answers are errors, and another node's are not"),
            id=does,
        )
        for does, answer, label in [
            ("answers with a stream that is an error", answer_with_events(ERROR, DONE), "no_output"),
            ("answers with a stream that ends at once", answer_with_events(DONE), "no_output"),
            ("answers 200 with an error", Behaviour(200, ERROR), "no_output"),
            ("answers 200 with an empty body", Behaviour(200, b""), "no_output"),
            ("answers 200 with an error of a web framework", Behaviour(200, b'{"detail": "Not Found"}'), "no_output"),
            ("answers 200 with an empty object", Behaviour(200, b"{}"), "no_output"),
            ("answers 200 with a page", Behaviour(200, b"<p>Welcome</p>", "text/html"), "no_output"),
            ("answers 204", Behaviour(204, b""), "no_output"),
            ("answers each request with 301", Behaviour(301, b"moved", "text/html"), "3xx"),
            ("breaks each answer off before its announced length", break_off, "cut_off"),
            ("breaks each answer in chunks off", break_off_chunks, "cut_off"),
            ("breaks each stream off after its first output", break_off_stream, "cut_off"),
            ("resets the connection of each stream after its first output", reset_stream, "cut_off"),
            ("ends each stream with an error after its first output", answer_with_events(WORD, ERROR, DONE), "cut_off"),
        ]
    ],
)
def test_a_node_whose_answers_look_good_and_are_none_draws_few_requests(
    work: WorkStack, answer: Callable[[BaseHTTPRequestHandler], None], label: str
) -> None:
    work.publish(EVERYBODY)
    posts: Counter[str] = Counter()

    def lie(handler: BaseHTTPRequestHandler) -> None:
        """Count a request, and answer it."""
        posts["node-4"] += 1
        with contextlib.suppress(OSError):
            answer(handler)

    def answer_slowly(handler: BaseHTTPRequestHandler) -> None:
        """Answer after a moment, as a node that computes."""
        slow.wait(0.05)
        answer_with_events(WORD, DONE)(handler)

    def ask(_: int) -> None:
        """Send a request; its answer may be broken off."""
        with contextlib.suppress(http.client.IncompleteRead):
            work.post(500)

    slow = threading.Event()
    set_behaviour(work, "node-4", lie)
    for name in ("node-2", "node-3"):
        set_behaviour(work, name, answer_slowly)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(400)))
    assert 5 <= posts["node-4"] < 60
    assert ejections_of(work, "node-4")["errors"] >= 1
    assert answers_of(work, "node-4") == {label: posts["node-4"]}
    assert all(set(answers_of(work, name)) == {"2xx"} and not ejections_of(work, name) for name in ("node-2", "node-3"))
    work.heard.append(work.log())
    wait_for(work.idle)


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_a_client_that_leaves_an_answer_that_has_begun_is_no_fault_of_the_node(
    work: WorkStack, content_type: str
) -> None:
    work.publish({"node-2": 100})
    go_on = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        """Begin an answer, and wait until the client has left."""
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"data: {}\n\n")
        go_on.wait(30)
        handler.close_connection = True

    set_behaviour(work, "node-2", answer)
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", work.ingress_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", b"x" * 10)
            connection.getresponse().read(4)
    wait_for(lambda: answers_of(work, "node-2") == {"2xx": 6})
    go_on.set()
    assert not ejections_of(work, "node-2")
    wait_for(work.idle)


def test_the_wrong_requests_of_one_session_eject_nobody(work: WorkStack) -> None:
    restart(work, affinity="session")
    wrong = "an unknown model"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        """Refuse wrong requests, and answer the others."""
        if handler.headers["X-Session-Id"] == wrong:
            respond(handler, b'{"error": {"message": "unknown"}}', 404, "application/json")
        else:
            answer_with_events(WORD, DONE)(handler)

    for name in EVERYBODY:
        set_behaviour(work, name, answer)
    with ThreadPoolExecutor(4) as pool:
        right = pool.map(lambda i: work.post(500, f"session {i}").status, range(200))
        refused = pool.map(lambda _: work.post(500, wrong).status, range(200))
        assert (set(right), set(refused)) == ({200}, {404})
    assert not any(ejections_of(work, name) for name in EVERYBODY)
    assert all(answers_of(work, name)["404"] > 20 for name in EVERYBODY)
    wait_for(work.idle)


def test_a_poison_whose_client_leaves_ejects_few_nodes_for_a_moment(work: WorkStack) -> None:
    restart(work)
    at_first, at_second, has_left = threading.Event(), threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        """Break the connection of a poison at its first node, and hold it at the second one. Answer the others."""
        if handler.headers["X-Session-Id"] != "poison":
            answer_with_events(WORD, DONE)(handler)
        elif at_first.is_set():
            at_second.set()
            has_left.wait(10)
        else:
            at_first.set()
            handler.close_connection = True

    for name in EVERYBODY:
        set_behaviour(work, name, answer)
    for poisons in range(1, 6):
        for event in (at_first, at_second, has_left):
            event.clear()
        client = http.client.HTTPConnection("127.0.0.1", work.ingress_port, timeout=30)
        with contextlib.closing(client):
            client.request("POST", "/v1/completions", b"x", {"X-Session-Id": "poison"})
            assert at_second.wait(10)
        wait_for(lambda: not any(node.get("ejected_for") for node in work.known().values()))
        has_left.set()
        assert sum(ejections_of(work, name).get("broken", 0) for name in EVERYBODY) == poisons
    assert ask_together(work, 60) == {200: 60}
    wait_for(work.idle)


@pytest.mark.parametrize("status", [500, 400, 404])
def test_when_all_nodes_answer_alike_nobody_is_ejected(work: WorkStack, status: int) -> None:
    work.publish(EVERYBODY)
    for name in EVERYBODY:
        set_behaviour(work, name, Behaviour(status))
    assert ask_together(work, 120) == {status: 120}
    assert all(not node["ejections"] for node in work.known().values())
    assert all(sum(answers_of(work, name).values()) > 10 for name in EVERYBODY)
    wait_for(work.idle)


@with_workers(2, 4, 8)
def test_of_many_bad_nodes_half_of_the_pool_is_ejected(work: WorkStack) -> None:
    work.publish(EVERYBODY)
    for name in ("node-3", "node-4"):
        set_behaviour(work, name, Behaviour(500))
    wait_for(lambda: work.post().status in {200, 500} and any(node["ejections"] for node in work.known().values()))
    assert sum("ejected_for" in node for node in work.known().values()) == 1
    wait_for(work.idle)


@with_workers(2, 4, 8)
def test_bad_answers_in_a_row_are_counted_over_all_workers(work: WorkStack) -> None:
    restart(work, outlier={"row": 10, "error_ratio": 1}, backoff={"first": 60, "longest": 60})
    liar = Behaviour(500)
    set_behaviour(work, "node-4", liar)
    wait_for(lambda: work.post().status in {200, 500} and "errors" in ejections_of(work, "node-4"))
    assert liar.posts == 10
    wait_for(work.idle)
    assert all(work.post().status == 200 for _ in range(20 * work.workers)), "each worker leaves it out"


@fault("answers a part of all requests with 500", "…gets no requests for 0.5 s: more of its answers are errors than…")
def test_a_node_whose_answers_are_errors_more_often_than_the_others_is_ejected(work: WorkStack) -> None:
    restart(work, outlier={"row": 0})
    parts = Behaviour()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        """Answer every second request well."""
        parts.status = 500 if parts.posts % 2 else 200
        parts(handler)

    set_behaviour(work, "node-4", answer)

    def is_ejected() -> bool:
        """Ask some more."""
        ask_together(work, 30, 3)
        return "error_share" in ejections_of(work, "node-4")

    wait_for(is_ejected)
    assert [set(ejections_of(work, name)) for name in ("node-2", "node-3")] == [set(), set()]
    work.heard.append(work.log())


def chat(number: int, turn: int) -> bytes:
    """Return the prompt of a chat, which grows with each turn."""
    return json.dumps({"prompt": f"chat {number} ".ljust(2048, ".") + "and more " * 300 * turn}).encode()


@pytest.mark.parametrize("affinity", ["session", "prefix"])
def test_a_session_leaves_its_home_while_that_is_ejected(work: WorkStack, affinity: str) -> None:
    restart(work, affinity=affinity, backoff={"first": 5, "longest": 5})
    homes = {number: work.post(session=str(number), body=chat(number, 0)).node for number in range(40)}
    movers = [number for number, home in homes.items() if home == "node-4"]
    assert 3 <= len(movers) < 40
    behaviour = Behaviour(500)
    set_behaviour(work, "node-4", behaviour)

    def is_ejected() -> bool:
        for number in movers:
            work.post(session=str(number), body=chat(number, 0))
        return "errors" in ejections_of(work, "node-4")

    wait_for(is_ejected)
    before = behaviour.posts
    away = {
        number: {work.post(session=str(number), body=chat(number, turn)).node for turn in (1, 2)} for number in movers
    }
    assert work.known()["node-4"]["backoff_seconds"] > 0, "this machine is too slow for this test"
    assert behaviour.posts == before
    assert all(len(nodes) == 1 for nodes in away.values()), "each has one other node meanwhile"
    set_behaviour(work, "node-4", streaming(work, "node-4").stream)

    def is_back() -> bool:
        work.post()
        return "ejected_for" not in work.known()["node-4"]

    wait_for(is_back)
    wait_for(work.idle)
    for number in movers:
        now = work.post(session=str(number), body=chat(number, 3)).node
        assert {now} == ({"node-4"} if affinity == "session" else away[number])
    for number, home in homes.items():
        if home != "node-4":
            assert work.post(session=str(number), body=chat(number, 1)).node == home


def kept_connections(it: WorkStack) -> None:
    """Leave idle connections to all nodes."""
    ask_together(it, 60, 20)


@pytest.mark.fault(
    14,
    "a client sends requests that make each node close its connection",
    sees="…gets no requests for 0.5 s: it broke a connection before an answer",
    keeps="a request reaches as many nodes as it may, and the first gets requests again when it breaks a second one",
)
@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_request_that_breaks_its_nodes_connections_reaches_no_more_nodes_than_it_may(
    work: WorkStack, tries: int
) -> None:
    reached: Counter[str] = Counter()

    def behaviour_of(name: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            """Close the connection without an answer, if the request is a bad one."""
            if handler.path == "/v1/poison":
                reached[name] += 1
                handler.close_connection = True
            else:
                respond(handler, ANSWER)

        return answer

    for node in work.nodes:
        set_behaviour(work, node.name, behaviour_of(node.name))
    restart(work, tries=tries)

    def all_are_well() -> bool:
        kept_connections(work)
        return not any("ejected_for" in node for node in work.known().values())

    for _ in range(3):
        wait_for(all_are_well)
        reached.clear()
        assert work.post(path="/v1/poison").status == 502
        assert sum(reached.values()) == tries
        assert max(reached.values()) <= 2  # once more where no other live node is left
        assert sum("ejected_for" in node for node in work.known().values()) == (tries == 1)
    assert ("gets requests again" in work.log()) == (tries > 1)
    work.heard.append(work.log())
    wait_for(work.idle)


def test_a_node_that_closes_idle_connections_costs_no_client_a_failure(work: WorkStack) -> None:
    work.publish(EVERYBODY)
    closes: Counter[str] = Counter()

    def behaviour_of(name: str) -> Callable[[BaseHTTPRequestHandler], None]:
        seen: set[int] = set()  # connections by which there was a request

        def answer(handler: BaseHTTPRequestHandler) -> None:
            """Close a connection at its second request, as a server whose keep-alive has just ended."""
            if id(handler) in seen:
                closes[name] += 1
                handler.close_connection = True
                return
            seen.add(id(handler))
            respond(handler, ANSWER)

        return answer

    set_behaviour(work, "node-2", behaviour_of("node-2"))
    assert ask_together(work, 200, 4) == {200: 200}
    assert closes["node-2"] > 0


def test_a_node_that_is_full_is_passed_over_and_stays(work: WorkStack) -> None:
    work.publish(EVERYBODY)
    full = Behaviour(503, FULL)
    set_behaviour(work, "node-4", full)
    assert ask_together(work, 60) == {200: 60}
    assert full.posts > 0
    full.status, full.body = 200, ANSWER
    before = full.posts
    wait_for(lambda: bool(work.post().status == 200 and full.posts > before))
    assert all(not node["ejections"] for node in work.known().values())
    assert answers_of(work, "node-4")["503"] == before
    wait_for(work.idle)


def test_when_all_nodes_are_full_the_client_reads_what_the_last_one_says(work: WorkStack) -> None:
    work.publish(EVERYBODY)
    behaviours = {name: Behaviour(503, FULL) for name in EVERYBODY}
    for name, behaviour in behaviours.items():
        set_behaviour(work, name, behaviour)
    answer = work.post()
    assert (answer.status, answer.text) == (503, FULL.decode())
    assert [behaviour.posts for behaviour in behaviours.values()] == [1, 1, 1]
    assert all(not node["ejections"] for node in work.known().values())


@pytest.mark.parametrize("retried", ["error http_503 non_idempotent", "error http_500 http_503 non_idempotent"])
def test_a_500_is_tried_on_another_node_if_the_operator_allows_it(work: WorkStack, retried: str) -> None:
    work.retried = retried
    restart(work)
    dying = Behaviour(500)
    set_behaviour(work, "node-4", dying)
    seen = ask_together(work, 100)
    assert seen[200] == (100 if "http_500" in retried else 100 - dying.posts)
    assert answers_of(work, "node-4") == {"500": dying.posts}
    assert "errors" in ejections_of(work, "node-4")
    wait_for(work.idle)


def test_a_request_that_was_sent_is_not_sent_again_after_a_time_out(work: WorkStack) -> None:
    work.retried = "error timeout non_idempotent"
    restart(work, "proxy_read_timeout 200ms;")
    for name in EVERYBODY:
        streaming(work, name).begin.clear()
    answer = work.post()
    assert answer.status == 502
    assert sum(streaming(work, name).posts for name in EVERYBODY) == 1
    assert sum(answers_of(work, name).get("timed_out", 0) for name in EVERYBODY) == 1
    for name in EVERYBODY:
        streaming(work, name).begin.set()
    wait_for(work.idle)


@fault(
    "has an engine that hangs while its server accepts requests",
    "…gets no requests for 0.5 s: clients leave it without an answer, and another node answers",
)
def test_a_node_that_clients_leave_without_an_answer_is_ejected(work: WorkStack) -> None:
    restart(work, outlier={"leaver_seconds": 0.05})
    hangs = streaming(work, "node-4")
    hangs.begin.clear()
    held: list[http.client.HTTPConnection] = []
    ejected = threading.Event()

    def ask_and_leave() -> None:
        """Ask, and go away if there is no answer within a quarter of a second."""
        connection = http.client.HTTPConnection("127.0.0.1", work.ingress_port, timeout=0.25)
        held.append(connection)
        with contextlib.closing(connection), contextlib.suppress(TimeoutError):
            connection.request("POST", "/v1/completions", b"x" * 10)
            connection.getresponse().read()

    def is_ejected() -> bool:
        """Ask some more."""
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: ask_and_leave(), range(6)))
        if "silent" in ejections_of(work, "node-4"):
            ejected.set()
        return ejected.is_set()

    wait_for(is_ejected)
    assert [ejections_of(work, name) for name in ("node-2", "node-3")] == [{}, {}]
    hangs.begin.set()
    work.heard.append(work.log())
    wait_for(work.idle)


def test_nodes_that_leave_the_list_leave_nothing_in_shared_memory(work: WorkStack) -> None:
    def facts() -> set[str]:
        """Return the nodes of which there are facts in shared memory, by address."""
        keys = fetch(work.status_port, "/keys").strip().split("|")
        return {key.split(":", 2)[2] for key in keys if key.startswith("node:")}

    work.publish(EVERYBODY)
    for name, status in (("node-3", 500), ("node-4", 404)):
        set_behaviour(work, name, Behaviour(status))
    ask_together(work, 60)
    assert facts() == {f"{node.address}:{node.port}" for node in work.nodes}
    wait_for(work.idle)
    work.publish({"node-2": 100}, "0b")
    assert facts() == {f"{work.nodes[0].address}:{work.nodes[0].port}"}


def test_metrics_of_answers_have_the_pool_the_node_and_the_status(work: WorkStack) -> None:
    work.publish({"node-2": 100})
    set_behaviour(work, "node-2", Behaviour(418))
    work.post()
    lines = fetch(work.status_port, "/work/metrics").splitlines()
    assert f'vllm_nginx_lb_work_answers_total{{pool="{POOL}",node="node-2",status="4xx"}} 1' in lines
