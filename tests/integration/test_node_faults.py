"""No fault of a node disturbs a tick: the other nodes are weighed as before, and the ingress answers."""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import FakeNode, Stack, fetch, respond, standing, wait_for
from tests.packets import dropped

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import BaseHTTPRequestHandler

    Behaviour = Callable[[BaseHTTPRequestHandler], None]

LABELS = '{engine="0",model_name="m"}'
GOOD = (
    f"vllm:kv_cache_usage_perc{LABELS} 0.8\n"
    f"vllm:num_requests_waiting{LABELS} 0\n"
    f"vllm:num_requests_running{LABELS} 1\n"
    f"vllm:num_preemptions_total{LABELS} 0\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
BOMB = gzip.compress(bytes(100_000_000))
INTERVAL_SECONDS = 0.1  # each tick of a test that has this comes an interval after the one before
LONG_LINE = f'vllm:num_requests_waiting{{engine="{"0" * 10_000_000}"}} 0\n'


# --- What a node may answer -----------------------------------------------------------------------------


def answer(body: bytes | str, status: int = 200, content_type: str = "text/plain", **headers: str) -> Behaviour:
    """Answer with valid HTTP."""
    content = body.encode(errors="surrogateescape") if isinstance(body, str) else body
    return lambda handler: respond(handler, content, status, content_type, **headers)


def changed(old: str, new: str) -> Behaviour:
    """Answer good metrics, with a change."""
    assert old in GOOD
    return answer(GOOD.replace(old, new))


def stream(head: bytes, piece: bytes = b"", times: int = 0, pause_seconds: float = 0) -> Behaviour:
    """Send these very bytes, then a piece many times, with a pause before each; then close."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        pause = threading.Event()
        with contextlib.suppress(OSError):  # the script has closed the connection
            handler.wfile.write(head)
            for _ in range(times):
                if pause_seconds:
                    pause.wait(pause_seconds)
                handler.wfile.write(piece)

    return behave


# --- What stays true for any fault of a node -------------------------------------------------------------


def node_of(stack: Stack, name: str) -> dict[str, Any]:
    """Return what the status says of a node."""
    return next(node for pool in stack.status()["pools"] for node in pool["nodes"] if node["name"] == name)


def assert_ingress_answers(stack: Stack, *names: str) -> None:
    """Send requests through nginx: each is answered, by one of these nodes."""
    assert {fetch(stack.ingress_port, "/v1/models") for _ in range(20)} <= set(names or ("node-a", "node-b", "node-c"))


def add_node(stack: Stack, node: FakeNode) -> FakeNode:
    """Put a node into the configuration."""
    stack.nodes.append(node)
    stack.config["pools"][0]["nodes"].append({"name": node.name, "host": "127.0.0.1", "port": node.port})
    return node


def fault(what: str, sees: str, keeps: str = "the others are weighed, the ingress answers") -> pytest.MarkDecorator:
    """Mark a test as one of a node's faults."""
    return pytest.mark.fault(7, what, sees=sees, keeps=keeps)


@dataclass(frozen=True)
class Bad:
    """A fault of a node, and the reason why the node cannot be read."""

    name: str  # of the node
    what: str
    reason: str
    behaviour: Behaviour


KV, WAITING, PREEMPTIONS = "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting", "vllm:num_preemptions_total"
ZIPPED = answer(BOMB, Content_Encoding="gzip")
LESS_THAN_PROMISED = HEAD[:-2] + b"Content-Length: 999\r\n\r\nvllm:"
CHUNKED = HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"


TABLES = (
    [
        # The node reports an error
        Bad("401", "answers 401", "HTTP 401 (see scrape.api_key_file)", answer("", 401)),
        Bad("403", "answers 403", "HTTP 403 (see scrape.api_key_file)", answer("", 403)),
        Bad("429", "answers 429", "HTTP 429", answer("", 429, Retry_After="3600")),
        Bad("500", "answers 500", "HTTP 500", answer(GOOD, 500)),
        Bad("503", "answers 503", "HTTP 503", answer(GOOD, 503)),
        # It does not end, or too early
        Bad("short", "closes mid-way", "the answer broke off", stream(LESS_THAN_PROMISED)),
        Bad("chunk", "closes in a chunk", "the answer broke off", stream(CHUNKED + b"fff\r\nvllm:")),
        Bad("length", "sends chunks of no length", "the answer broke off", stream(CHUNKED + b"many\r\n")),
        # It does not speak HTTP
        Bad("silent", "closes without a word", "closed without an answer (1 of 3)", stream(b"")),
        Bad("garbage", "answers in HTTP/0.9", "the answer is not http (1 of 3)", stream(b"\x00\xffhello\r\n" * 9)),
        # Its answer is something else
        Bad("html", "answers HTML", "content type text/html instead of text/plain", answer("<p>", 200, "text/html")),
        Bad("html-as-text", "answers HTML as text", f"no {KV}", answer("<html>")),
        Bad("not-utf-8", "answers in no UTF-8", "not in the Prometheus text format", changed('"m"', '"\udcff"')),
        Bad("impossible", "has no possible value", f"{KV} is nan", answer(re.sub(r" \S+\n", " NaN\n", GOOD))),
        Bad("missing", "lacks a metric", f"no {WAITING}", changed(WAITING, "vllm:other")),
        Bad("twice", "sends a sample twice", f"{KV} comes twice with the same labels", answer(GOOD + GOOD)),
    ],
    # These make a tick work long, or wait.
    [
        # The node answers slowly
        Bad("hang", "accepts and says nothing", "no answer within 3 s (1 of 3)", stream(b"", b"", 1, 6)),
        Bad("drip", "drips, a byte at a time", "no complete answer within 3 s", stream(HEAD, b"#", 100, 0.05)),
        Bad("slow-head", "drips its headers", "no answer within 3 s (1 of 3)", stream(HEAD[:-2], b"x", 100, 0.05)),
        # It does not end, or too early
        Bad("endless", "never ends", "more than 4194304 bytes", stream(HEAD, b"# endless\n" * 1000, 10**5)),
        Bad("line", "sends a line of 10 MB", "more than 4194304 bytes", answer(LONG_LINE + GOOD)),
        Bad("lines", "sends too many samples", "metrics far larger than vLLM's", answer(f"{WAITING} 1\n" * 10**5)),
        # It does not speak HTTP
        Bad(
            "headers",
            "sends 100,000 headers",
            "the answer is not http (1 of 3)",
            stream(HEAD[:-2], b"X-More: 1\r\n", 10**5),
        ),
        Bad(
            "header",
            "sends a header without end",
            "the answer is not http (1 of 3)",
            stream(HEAD[:-2], b"x" * 10**4, 10**4),
        ),
        Bad("continue", "says 100 Continue for ever", "… (1 of 3)", stream(b"", HEAD.replace(b"200", b"100"), 10**6)),
        # Its answer is something else
        Bad(
            "gzip", "answers a gzip bomb", "compressed although asked not to be", answer(BOMB, Content_Encoding="gzip")
        ),
        Bad("bomb", "answers a gzip bomb as text", f"no {KV}", answer(BOMB)),
    ],
)


def each_row() -> pytest.MarkDecorator:
    """Make a test of each row of the tables. The message about its node becomes a row of docs/reliability.md."""
    keeps = "its weight, the others are weighed, the ingress answers"
    return pytest.mark.parametrize(
        ("table", "row"),
        [
            pytest.param(
                number, row, id=row.name, marks=fault(row.what, f"…: unknown: {row.reason}, last weight held", keeps)
            )
            for number, rows in enumerate(TABLES)
            for row in rows
        ],
    )


@dataclass(frozen=True)
class Site:
    """The result of a tick in which each node of a table had the fault of its row."""

    said: list[str]
    outcome: str
    weights: dict[str, int]
    answered: set[str]


@pytest.fixture(scope="module")
def site_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Site]:
    """Return a function that runs the ticks of a table once, for all tests of its rows."""

    @functools.cache
    def run(table: int) -> Site:
        """Run one tick with good nodes, and one in which each node has the fault of its row."""
        with standing(tmp_path_factory.mktemp("site"), []) as stack:
            stack.config["scrape"]["timeout_seconds"] = 3
            stack.nodes.pop(1).stop()
            stack.config["pools"][0]["nodes"].pop(1)
            for row in TABLES[table]:
                add_node(stack, FakeNode(row.name)).load["kv"] = 0.8
            stack.run()
            for row, node in zip(TABLES[table], stack.nodes[2:], strict=True):
                node.answer = row.behaviour
            stack.nodes[0].load["kv"] = 0.95
            said = stack.run()
            answered = {fetch(stack.ingress_port, "/v1/models") for _ in range(20)}
            return Site(said.splitlines(), stack.status()["outcome"], stack.weights(), answered)

    return run


@each_row()
def test_a_node_that_cannot_be_read_holds_its_weight(
    site_of: Callable[[int], Site], table: int, row: Bad, heard: list[str]
) -> None:
    site = site_of(table)
    heard += [line for line in site.said if f"/{row.name}: " in line]
    assert site.weights[row.name] == 60
    assert (site.weights["node-a"], site.weights["node-c"]) == (10, 100)
    assert site.outcome == "reloaded"
    assert site.answered <= set(site.weights), "each request is answered, by one of the nodes"


# --- Answers of which a part can be used ------------------------------------------------------------------------

RECORDINGS = Path(__file__).parent.parent / "fixtures"
ZERO = f"{WAITING}{LABELS} 0"
PROCESS = "# TYPE python_info gauge\npython_info 1\nhttp_requests_total 5\n"
EOF = "# EOF\n"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True)
class Partial:
    """An answer that is read in part, the weight of its node with the policy `stepped`, and the node's reason."""

    name: str
    what: str
    weight: int
    reason: str
    behaviour: Behaviour


LEFT_OUT = f"kv 0.80 >= 0.75; left out: {WAITING} is"
NO_STATISTICS = "capacity 1 as configured; no metrics of vllm (it runs with --disable-log-stats)"
PARTIAL = (
    Partial("nan", "has a KV usage of NaN", 100, f"kv unknown; left out: {KV} is nan", changed("0.8", "NaN")),
    Partial("inf", "has a KV usage of +Inf", 100, f"kv unknown; left out: {KV} is inf", changed("0.8", "+Inf")),
    Partial("minus-inf", "has -Inf waiting", 60, f"{LEFT_OUT} -inf", changed(ZERO, f"{WAITING} -Inf")),
    Partial("negative", "has -1 waiting", 60, f"{LEFT_OUT} -1", changed(ZERO, f"{WAITING} -1")),
    Partial("1e400", "has 1e400 waiting", 60, f"{LEFT_OUT} inf", changed(ZERO, f"{WAITING} 1e400")),
    Partial("silent", "runs with --disable-log-stats", 100, NO_STATISTICS, answer(PROCESS)),
)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.name, marks=fault(row.what, f"node-b: up: {row.reason}", "what else it says; it is said once")
        )
        for row in PARTIAL
    ],
)
def test_an_answer_that_can_be_read_in_part(stack: Stack, row: Partial) -> None:
    stack.nodes[1].load["kv"] = 0.8
    stack.run()
    stack.nodes[1].answer = row.behaviour
    stack.nodes[0].load["kv"] = 0.95
    assert stack.run().count(f"node-b: up: {row.reason}\n") == 1
    assert stack.weights() == {"node-a": 10, "node-b": row.weight, "node-c": 100}
    assert (node_of(stack, "node-b")["state"], node_of(stack, "node-b")["reason"]) == ("up", row.reason)
    assert [stack.run(), stack.run()] == ["", ""], "a lasting fault is logged once"
    stack.nodes[1].answer = None
    stack.run()
    assert stack.weights()["node-b"] == 60
    stack.nodes[1].answer = row.behaviour
    assert "node-b: up" not in stack.run(), "nor is one that comes and goes"
    assert_ingress_answers(stack)


@pytest.mark.parametrize("content_type", [OPENMETRICS, OPENMETRICS.upper(), "application/openmetrics-text"])
def test_a_node_that_answers_in_openmetrics(stack: Stack, content_type: str) -> None:
    stack.nodes[1].answer = answer(GOOD + EOF, 200, content_type)
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 60, "node-c": 100}
    assert node_of(stack, "node-b")["state"] == "up"


@pytest.mark.parametrize("version", ["0.32.0-api2", "0.33.0-dp2"])
def test_a_fleet_with_several_api_servers_starts_and_comes_back(stack: Stack, version: str) -> None:
    stack.config["interval_seconds"] = INTERVAL_SECONDS
    idle, busy = (answer((RECORDINGS / f"vllm-{version}-{state}.txt").read_bytes()) for state in ("idle", "busy"))
    for node in stack.nodes:
        node.answer = idle
    stack.run()  # ends well at the first start of a fleet, before any request
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    stack.nodes[1].answer = busy
    stack.run()
    stack.nodes[1].stop()
    for _ in range(3):
        stack.run()
    assert stack.weights()["node-b"] == 0
    stack.nodes[1] = FakeNode("node-b", port=stack.nodes[1].port)
    stack.nodes[1].answer = idle
    for _ in range(3):
        stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    assert_ingress_answers(stack)


@fault(
    "claims 500,000 tokens/s",
    "node-b: up: claims 25000 tokens/s a request, which no engine has: its weight stays",
    "the weights of the others; it is said once",
)
def test_a_node_that_claims_a_speed_that_no_engine_has(stack: Stack) -> None:
    stack.config["interval_seconds"] = INTERVAL_SECONDS
    stack.config["pools"][0]["policy"] = "capacity"
    now = [0.0]

    def claim(handler: BaseHTTPRequestHandler) -> None:
        now[0] += 0.001  # seconds of a request
        count = f"vllm:inter_token_latency_seconds_count{LABELS} {round(25000 * now[0])}\n"
        total = f"vllm:inter_token_latency_seconds_sum{LABELS} {now[0]}\n"
        tokens = f"vllm:generation_tokens_total{LABELS} {round(25000 * now[0])}\n"
        respond(handler, (GOOD + count + total + tokens).encode())

    stack.nodes[1].answer = claim
    said = [stack.run() for _ in range(4)]
    assert "".join(said).count("which no engine has") == 1
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    assert node_of(stack, "node-b")["cause"] == "implausible"


@fault(
    "sends a line of 10 MB, and scrape.max_bytes allows it",
    "node-b: unknown: metrics far larger than vLLM's, last weight held",
)
def test_a_long_line_is_not_parsed(stack: Stack) -> None:
    stack.config["scrape"]["max_bytes"] = 2**24
    stack.nodes[1].answer = answer("# " + LONG_LINE + GOOD)
    stack.run()
    assert stack.weights()["node-b"] == 60, "a line that is not wanted may have any length"
    stack.nodes[1].answer = answer(LONG_LINE + GOOD)
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 60, "node-c": 100}
    assert_ingress_answers(stack)


@fault("redirects elsewhere", "node-b: unknown: HTTP 302, last weight held", "nothing is asked there")
def test_a_redirect_is_not_followed(stack: Stack) -> None:
    elsewhere = FakeNode("elsewhere")
    try:
        stack.run()
        stack.nodes[1].answer = answer("", 302, Location=f"http://127.0.0.1:{elsewhere.port}/metrics")
        stack.run()
        assert elsewhere.headers == []
        assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
        assert_ingress_answers(stack)
    finally:
        elsewhere.stop()


# --- Nodes that cannot be reached ------------------------------------------------------------------------


@fault("refuses connections, three times in a row", "node-b: down: connection refused, 3 in a row")
def test_a_node_that_goes_away_and_comes_back(stack: Stack) -> None:
    stack.config["interval_seconds"] = INTERVAL_SECONDS
    stack.run()
    stack.nodes[1].stop()
    assert "node-b: unknown: connection refused (1 of 3), last weight held" in stack.run()
    assert_ingress_answers(stack, "node-a", "node-c")
    stack.run()
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 0, "node-c": 100}
    assert f"127.0.0.1:{stack.nodes[1].port} down" in stack.upstream.read_text()
    assert_ingress_answers(stack, "node-a", "node-c")
    assert stack.run() == ""  # a lasting fault is logged once
    stack.nodes[1] = FakeNode("node-b", port=stack.nodes[1].port)
    stack.run()
    assert "weight 0 -> 10: back after 2 good scrapes, starting low" in stack.run()
    assert "weight 10 -> 100" in stack.run()


@pytest.mark.parametrize("policy", ["capacity", "stepped"])
def test_more_ticks_do_not_shorten_the_slow_start(stack: Stack, policy: str) -> None:
    stack.config["interval_seconds"] = 3600
    stack.config["pools"][0]["policy"] = policy
    stack.run()
    stack.nodes[1].stop()
    for _ in range(3):
        stack.run()
    stack.nodes[1] = FakeNode("node-b", port=stack.nodes[1].port)
    for _ in range(6):
        stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 10, "node-c": 100}
    assert node_of(stack, "node-b")["cause"] == "slow_start"
    replayed = [line.split() for line in stack.script("replay").stdout.splitlines() if re.match(r"node-\w ", line)]
    assert [row[-1] for row in replayed] == ["0", "0", "0"], "a replay decides the same"
    stack.config["interval_seconds"] = INTERVAL_SECONDS
    for _ in range(2):
        stack.run()
    assert stack.weights()["node-b"] == 100


@fault("is a black hole: its packets are dropped", "node-b: down: no answer within 1 s, 3 in a row")
def test_a_black_hole_goes_down_and_delays_nobody(stack: Stack) -> None:
    stack.config["scrape"] |= {"timeout_seconds": 1, "workers": 1}
    stack.run()
    with dropped() as port:
        stack.config["pools"][0]["nodes"][1]["port"] = port
        stack.nodes[0].load["kv"] = 0.95
        assert "node-b: unknown: no answer within 1 s (1 of 3), last weight held" in stack.run()
        assert stack.weights() == {"node-a": 10, "node-b": 100, "node-c": 100}
        stack.run()
        stack.run()
        assert stack.weights() == {"node-a": 10, "node-b": 0, "node-c": 100}
        assert_ingress_answers(stack, "node-a", "node-c")


@fault("hangs, and so does another", "node-b: unknown: no answer within 1 s (1 of 3)", "a third one is read in time")
def test_a_hanging_node_does_not_delay_the_others(stack: Stack) -> None:
    stack.config["scrape"] |= {"timeout_seconds": 1, "workers": 1}
    for node in stack.nodes[:2]:
        node.answer = stream(b"", b"", 1, 6)
    stack.run()
    assert [node_of(stack, node.name)["state"] for node in stack.nodes] == ["unknown", "unknown", "up"]
    assert_ingress_answers(stack)


@fault("refuses, and so does half of the fleet", "node-d: down: connection refused, 3 in a row")
def test_half_the_fleet_goes_down(stack: Stack) -> None:
    add_node(stack, FakeNode("node-d"))
    stack.run()
    for node in stack.nodes[2:]:
        node.stop()
    for _ in range(3):
        stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 0, "node-d": 0}
    assert_ingress_answers(stack, "node-a", "node-b")


NONE_READ = "pool llm_cluster: no node can be read, last weights kept"


@fault("refuses, and so do all", NONE_READ, "the last good file, whoever returns is asked at once")
def test_all_nodes_unreachable_changes_nothing(stack: Stack) -> None:
    stack.nodes[1].load["kv"] = 0.8
    stack.run()
    live, workers = stack.upstream.read_text(), stack.worker_pids()
    for node in stack.nodes:
        node.stop()
    for _ in range(4):
        said = stack.run(1)
        assert said.splitlines()[-1] == NONE_READ
        assert stack.upstream.read_text() == live
        assert stack.worker_pids() == workers
    assert stack.status()["error"] == NONE_READ
    assert stack.weights() == {"node-a": 100, "node-b": 60, "node-c": 100}
    stack.nodes[:] = [FakeNode(node.name, port=node.port) for node in stack.nodes]
    assert_ingress_answers(stack)


@fault("cannot be read, and neither can any", NONE_READ, "the last good file, requests are answered")
def test_all_nodes_unreadable_changes_nothing(stack: Stack) -> None:
    stack.nodes[1].load["kv"] = 0.8
    stack.run()
    live, workers = stack.upstream.read_text(), stack.worker_pids()
    for node in stack.nodes:
        node.answer = answer("", 500)
    for _ in range(3):
        assert stack.run(1).splitlines()[-1] == NONE_READ
        assert (stack.upstream.read_text(), stack.worker_pids()) == (live, workers)
        assert_ingress_answers(stack)


@fault(
    "answers and refuses in turn, every tick",
    "node-b: unknown: connection refused (1 of 3), last weight held",
    "its weight; nginx is not reloaded",
)
def test_a_node_that_flaps_does_not_reload_nginx(stack: Stack) -> None:
    stack.run()
    workers = stack.worker_pids()
    for _ in range(4):
        stack.nodes[1].stop()
        stack.run()
        assert_ingress_answers(stack)
        stack.nodes[1] = FakeNode("node-b", port=stack.nodes[1].port)
        stack.run()
        assert_ingress_answers(stack)
    assert stack.worker_pids() == workers
    assert stack.status()["outcome"] == "unchanged"


# --- Valid but unusual answers ---------------------------------------------------------------------------


def sleeping(*, awake: bool) -> Behaviour:
    """Answer as an engine that can be put to sleep."""
    states = {"awake": int(awake), "weights_offloaded": int(not awake), "discard_all": 0}
    lines = [f'vllm:engine_sleep_state{{engine="0",sleep_state="{name}"}} {value}\n' for name, value in states.items()]
    return answer(GOOD + "".join(lines))


@fault("is put to sleep", "node-b: weight 60 -> 0: asleep")
def test_an_engine_that_sleeps_is_no_target(stack: Stack) -> None:
    stack.nodes[1].answer = sleeping(awake=True)
    stack.run()
    assert stack.weights()["node-b"] == 60
    stack.nodes[1].answer = sleeping(awake=False)
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 0, "node-c": 100}
    assert_ingress_answers(stack, "node-a", "node-c")


TWO_ENGINES = GOOD + GOOD.replace('"0"', '"1"').replace("} 0.8", "} 0.9")
TWO_MODELS = GOOD + GOOD.replace('"m"', '"n"').replace("} 0.8", "} 0.9")


@pytest.mark.parametrize(
    ("body", "weight", "engines"),
    [
        pytest.param(
            GOOD.replace("kv_cache", "gpu_cache"),
            60,
            1,
            id="old-names",
            marks=fault("has the metric names of vLLM before 0.9", "node-b: weight new -> 60: kv 0.80 >= 0.75"),
        ),
        pytest.param(
            GOOD.replace("vllm:", "vllm_"),
            60,
            1,
            id="other-prefix",
            marks=fault("is behind a scraper that renames metrics", "node-b: weight new -> 60: kv 0.80 >= 0.75"),
        ),
        pytest.param(
            TWO_ENGINES,
            30,
            2,
            id="engines",
            marks=fault("has several engines", "node-b: weight new -> 30: kv 0.90 >= 0.85", "the fullest one counts"),
        ),
        pytest.param(
            TWO_MODELS,
            30,
            1,
            id="models",
            marks=fault("has several models", "node-b: weight new -> 30: kv 0.90 >= 0.85", "the fullest one counts"),
        ),
    ],
)
def test_an_unusual_node_is_weighed(stack: Stack, body: str, weight: int, engines: int) -> None:
    stack.nodes[1].answer = answer(body)
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": weight, "node-c": 100}
    node = node_of(stack, "node-b")
    assert (node["engines"], node["running"]) == (engines, body.count("num_requests_running"))
    assert_ingress_answers(stack)


@fault("starts again, and its counters with it", "node-b: weight 60 -> 100: kv 0.10 < 0.75", "no preemption is counted")
def test_a_counter_that_starts_again_is_no_preemption(stack: Stack) -> None:
    stack.nodes[1].load["preemptions"] = 500
    stack.run()
    stack.nodes[1].load["preemptions"] = 501
    stack.run()
    assert (node_of(stack, "node-b")["preemptions_delta"], stack.weights()["node-b"]) == (1, 60)
    stack.nodes[1].load["preemptions"] = 3
    stack.run()
    assert (node_of(stack, "node-b")["preemptions_delta"], stack.weights()["node-b"]) == (0, 100)
    assert_ingress_answers(stack)


@fault(
    "falls asleep and wakes up, again and again",
    "node-b: weight 0 -> 10: back after 2 good scrapes, starting low",
    "it stays away longer each time, nginx is reloaded ever less",
)
def test_a_node_that_keeps_falling_asleep_stays_away_longer(stack: Stack) -> None:
    stack.config["interval_seconds"] = INTERVAL_SECONDS
    stack.config["health"] = {"rise": 1}
    reloads: list[int] = []
    for _ in range(4):
        reloads.append(0)
        for awake in (True, True, False):
            stack.nodes[1].answer = sleeping(awake=awake)
            stack.run()
            reloads[-1] += stack.status()["outcome"] == "reloaded"
            assert_ingress_answers(stack)
    assert reloads == [2, 3, 2, 0]
    assert node_of(stack, "node-b")["reason"] == "asleep"
    assert stack.weights() == {"node-a": 100, "node-b": 0, "node-c": 100}


@fault(
    "has requests, and reports nothing new",
    "node-b: weight 60 -> 10: has requests, and reports nothing new for … s",
    "the others are weighed, it gets the least",
)
def test_a_frozen_node_gets_the_least(stack: Stack) -> None:
    stack.config["health"] = {"stale_after_seconds": 1}
    stack.nodes[1].answer = answer(f"{GOOD}vllm:generation_tokens_total{LABELS} 100\n")
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 60, "node-c": 100}
    wait_for(lambda: "reports nothing new" in stack.run())
    assert stack.weights() == {"node-a": 100, "node-b": 10, "node-c": 100}
    assert node_of(stack, "node-b")["state"] == "unknown"
    assert_ingress_answers(stack)
    stack.nodes[1].answer = answer(f"{GOOD}vllm:generation_tokens_total{LABELS} 101\n")
    stack.run()
    assert stack.weights()["node-b"] == 60
