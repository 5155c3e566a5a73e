"""The simulated node as a process: real sockets, the real openai client, real recordings of vLLM's /metrics."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "tests" / "fixtures"
DEADLINE_SECONDS = 10.0
pytestmark = pytest.mark.unmeasured
# The node also runs with the libraries of older Debian releases: name their interpreter to try it with those.
PYTHON = os.environ.get("SIMULATOR_PYTHON", sys.executable)
FAST = ("--step-ms", "2", "--prefill-token-ms", "0.01", "--decode-sequence-ms", "0.01")
FOREVER = 30_000  # tokens; a request that is still running when its test ends
HELLO: Any = [{"role": "user", "content": "hello there"}]

REQUIRED = {
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason"),
    *("vllm:kv_cache_usage_perc", "vllm:engine_sleep_state", "vllm:cache_config_info"),
    *("vllm:num_preemptions", "vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success"),
    *("vllm:prefix_cache_queries", "vllm:prefix_cache_hits", "vllm:iteration_tokens_total"),
    *("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"),
    *("vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds"),
    *("vllm:request_queue_time_seconds", "vllm:request_inference_time_seconds"),
    *("vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds"),
}
REQUIRED_OF_ONE_ENGINE = {"vllm:num_preemptions_created", "python_info", "process_resident_memory_bytes"}


@dataclass
class SimulatedNode:
    """A running node."""

    process: subprocess.Popen[str]
    port: int
    control_port: int

    @property
    def url(self) -> str:
        """Return where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, *, stream: bool = False, key: str = "") -> requests.Response:
        """Get a path, with a key if one is given."""
        headers = {"Authorization": f"Bearer {key}"} if key else None
        return requests.get(self.url + path, timeout=DEADLINE_SECONDS, stream=stream, headers=headers)

    def control(self, **settings: object) -> dict[str, Any]:
        """Change settings, if any are given, and return the state."""
        url = f"http://127.0.0.1:{self.control_port}/control"
        if settings:
            answer = requests.put(url, json=settings, timeout=DEADLINE_SECONDS)
        else:
            answer = requests.get(url, timeout=DEADLINE_SECONDS)
        assert answer.status_code == 200, answer.text
        state: dict[str, Any] = answer.json()
        return state

    def clear_faults(self) -> dict[str, Any]:
        """End all faults and return the state."""
        url = f"http://127.0.0.1:{self.control_port}/control/faults"
        state: dict[str, Any] = requests.delete(url, timeout=DEADLINE_SECONDS).json()
        return state

    def running(self) -> list[int]:
        """Return the true number of running requests of each engine."""
        return [engine["running"] for engine in self.control()["engines"]]

    def samples(self, name: str) -> list[float]:
        """Return the values of all samples of exactly this name."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return [s.value for family in families for s in family.samples if s.name == name]

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """Return a client that does not retry."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=DEADLINE_SECONDS)

    def complete(self, max_tokens: int = 3) -> str:
        """Return the text of one short completion."""
        with self.client() as client:
            return client.completions.create(model="sim", prompt="hello", max_tokens=max_tokens).choices[0].text


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.02)


@contextmanager
def start_node(*options: str) -> Iterator[SimulatedNode]:
    """Run a node with its own free ports, and end it by its PID."""
    command = [PYTHON, "-m", "simulator", "--port", "0", "--control-port", "0", *FAST, *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            ports = [int(process.stdout.readline().rpartition(":")[2]) for _ in range(2)]
            node = SimulatedNode(process, *ports)
            assert node.get("/health").status_code == 200
            yield node
        finally:
            process.terminate()
            assert process.wait(DEADLINE_SECONDS) == 0


@contextmanager
def open_stream(node: SimulatedNode, max_tokens: int = FOREVER) -> Iterator[Iterator[bytes]]:
    """Start a streamed completion, wait for its first piece and give the others."""
    body = {"prompt": "hello", "max_tokens": max_tokens, "stream": True}
    with requests.post(f"{node.url}/v1/completions", json=body, stream=True, timeout=DEADLINE_SECONDS) as answer:
        pieces: Iterator[bytes] = answer.iter_content(None)
        assert next(pieces).startswith(b"data:")
        yield pieces


@pytest.fixture(scope="module")
def shared_node() -> Iterator[SimulatedNode]:
    with start_node("--name", "node-a") as node:
        yield node


@pytest.fixture
def node(shared_node: SimulatedNode) -> Iterator[SimulatedNode]:
    yield shared_node
    shared_node.clear_faults()
    shared_node.control(sleep=0, speed=1)
    wait_until(lambda: shared_node.running() == [0], "the requests of a test are gone")


# -- the OpenAI API ---------------------------------------------------------------------------------


def test_chat_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        answer = client.chat.completions.create(model="sim", messages=HELLO, max_completion_tokens=5)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.model, answer.system_fingerprint) == ("sim", "node-a")
    assert answer.choices[0].finish_reason == "length"
    assert len((answer.choices[0].message.content or "").split()) == 5
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)


def test_streamed_chat_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        stream = client.chat.completions.create(
            model="sim", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(stream)
    *spoken, usage = pieces
    assert {piece.system_fingerprint for piece in pieces} == {"node-a"}
    assert spoken[0].choices[0].delta.role == "assistant"
    assert len("".join(piece.choices[0].delta.content or "" for piece in spoken).split()) == 7
    assert [piece.choices[0].finish_reason for piece in spoken] == [None] * 7 + ["length"]
    assert usage.usage
    assert not usage.choices
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (3, 7)


def test_completion_generates_sixteen_tokens_unless_told(node: SimulatedNode) -> None:
    with node.client() as client:
        answer = client.completions.create(model="sim", prompt=[1, 2, 3, 4, 5])
    assert answer.id.startswith("cmpl-")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)


def test_streamed_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        pieces = list(client.completions.create(model="sim", prompt="hello", max_tokens=4, stream=True))
    assert len("".join(piece.choices[0].text for piece in pieces).split()) == 4
    assert pieces[-1].choices[0].finish_reason == "length"


def test_models_health_and_version(node: SimulatedNode) -> None:
    with node.client() as client:
        assert [model.id for model in client.models.list()] == ["sim"]
    assert node.get("/health").content == b""
    assert node.get("/version").json() == {"version": "0.32.0"}
    unknown = node.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})


def test_prompts_that_begin_alike_are_found_in_the_prefix_cache() -> None:
    beginning, hits = "a prompt of many words " * 40, "vllm:prefix_cache_hits_total"
    with start_node("--prefix-caching", "--block-size", "16") as node, node.client() as client:
        client.completions.create(model="sim", prompt=beginning + "one", max_tokens=1)
        assert node.samples(hits) == [0]
        client.completions.create(model="sim", prompt=beginning + "another", max_tokens=1)
        assert node.samples(hits) == [len(beginning) // 64 * 16]
        client.completions.create(model="sim", prompt="x" + beginning, max_tokens=1)
        assert node.samples(hits) == [len(beginning) // 64 * 16]


def test_a_stream_comes_in_pieces_of_several_tokens_after_the_first() -> None:
    with start_node("--stream-interval", "4") as node:
        body = {"prompt": "a", "max_tokens": 10, "stream": True}
        answer = requests.post(f"{node.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS, stream=True)
        pieces = [piece.count(b"word ") for piece in answer.iter_content(None) if b"word " in piece]
    assert pieces == [1, 3, 4, 2]


def test_tokens_of_prompts_that_begin_alike_begin_alike(node: SimulatedNode) -> None:
    def tokens(prompt: object) -> list[int]:
        answer = requests.post(f"{node.url}/tokenize", json=prompt, timeout=DEADLINE_SECONDS).json()
        assert answer["count"] == len(answer["tokens"])
        return list(answer["tokens"])

    one, other = tokens({"prompt": "hello, world"}), tokens({"prompt": "hello, moon"})
    assert (len(one), one[0], one[1] == other[1]) == (3, other[0], False)
    assert tokens({"messages": [{"role": "user", "content": "hello, world"}]}) == one


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", "{", 400, "the body is not JSON"),
        ("completions", "[]", 400, "must be a JSON object"),
        ("completions", "{}", 400, "prompt: must be"),
        ("completions", '{"prompt": ["a", "b"]}', 400, "prompt: must be one text"),
        ("completions", '{"prompt": "a", "max_tokens": 0}', 400, "max_tokens must be at least 1"),
        ("completions", '{"prompt": "a", "n": 2}', 400, "one choice"),
        ("completions", '{"prompt": "a", "stream_options": {"include_usage": true}}', 400, "when `stream=True`"),
        ("completions", '{"prompt": "a", "max_tokens": 99999}', 400, "maximum context length of 32768 tokens"),
        ("completions", '{"prompt": "a", "model": "other"}', 404, "The model `other` does not exist."),
        ("chat/completions", "{}", 400, "messages: must be a list"),
        ("chat/completions", '{"messages": [{"content": "a"}]}', 400, "with a role"),
        ("chat/completions", '{"messages": [{"role": "user", "content": 1}]}', 400, "content must be"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    node: SimulatedNode, path: str, body: str, status: int, message: str
) -> None:
    answer = requests.post(f"{node.url}/v1/{path}", data=body, timeout=DEADLINE_SECONDS)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert message in error["message"]
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_the_client_sees_an_unknown_model_as_not_found(node: SimulatedNode) -> None:
    with node.client() as client, pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        client.completions.create(model="other", prompt="a")


def test_a_client_that_leaves_frees_its_place(node: SimulatedNode) -> None:
    aborted = sum(node.samples("vllm:request_success_total"))
    with open_stream(node):
        assert node.running() == [1]
    waiter = socket.create_connection(("127.0.0.1", node.port), DEADLINE_SECONDS)
    body = b'{"prompt":"a","max_tokens":%d}' % FOREVER
    waiter.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    wait_until(lambda: node.running() == [1], "only the second, unstreamed request runs")
    waiter.close()
    wait_until(lambda: node.running() == [0], "both requests are aborted")
    assert node.control()["engines"][0]["kv_cache_usage"] == 0
    assert sum(node.samples("vllm:request_success_total")) == aborted + 2


# -- options ----------------------------------------------------------------------------------------


def test_a_small_cache_preempts_and_every_answer_is_still_complete() -> None:
    with start_node("--num-blocks", "10", "--block-size", "16", "--max-num-seqs", "4") as node:
        with node.client() as client:
            streams = [
                client.completions.create(model="sim", prompt="a", max_tokens=120, stream=True) for _ in range(6)
            ]
            counts = [sum(len(piece.choices[0].text.split()) for piece in stream) for stream in streams]
            assert counts == [120] * 6
            with pytest.raises(openai.BadRequestError, match="maximum context length of 161 tokens"):
                client.completions.create(model="sim", prompt="a" * 700)
        preemptions = node.samples("vllm:num_preemptions_total")
        assert preemptions == [node.control()["engines"][0]["preemptions"]]
        assert preemptions[0] > 0
        assert node.samples("vllm:generation_tokens_total") == [720]


def test_two_engines_share_the_requests() -> None:
    with start_node("--engines", "2") as node:
        with open_stream(node), open_stream(node):
            assert node.running() == [1, 1]
            assert node.samples("vllm:num_requests_running") == [1, 1]
        compare_with_recording(node.get("/metrics").text, "vllm-0.32.0-dp2.txt")


def test_the_api_key_guards_what_it_should() -> None:
    with start_node("--api-key", "secret") as node:
        assert (node.get("/v1/models").status_code, node.get("/v1/models").json()) == (
            401,
            {"error": "Unauthorized"},
        )
        with node.client("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(model="sim", prompt="a")
        with node.client("secret") as client:
            assert client.completions.create(model="sim", prompt="a").model == "sim"
        assert node.get("/metrics").status_code == 200
        assert node.get("/health").status_code == 200


def test_the_api_key_can_guard_metrics_too() -> None:
    with start_node("--api-key", "secret", "--guard-metrics", "--old-metric-names") as node:
        assert node.get("/metrics").status_code == 401
        text = node.get("/metrics", key="secret").text
        assert "vllm:gpu_cache_usage_perc{" in text
        assert "vllm:kv_cache_usage_perc" not in text


def test_an_idle_connection_is_closed() -> None:
    with (
        start_node("--keep-alive", "0.2") as node,
        socket.create_connection(("127.0.0.1", node.port), DEADLINE_SECONDS) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block-size", "0"], "block_size: 0: must be at least 1"),
        (["--speed", "0"], "must be above 0"),
        (["--guard-metrics"], "--guard-metrics needs --api-key"),
        (["--port", "70000"], "allowed: 0 to 65535"),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], message: str) -> None:
    command = [PYTHON, "-m", "simulator", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_taken_port_is_one_clear_line(node: SimulatedNode) -> None:
    command = [PYTHON, "-m", "simulator", "--port", str(node.port)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    assert result.returncode == 1
    assert result.stderr.startswith("simulator: cannot listen: ")
    assert "Traceback" not in result.stderr


# -- metrics ----------------------------------------------------------------------------------------

Shape = dict[str, tuple[str, dict[str, set[frozenset[str]]], list[str]]]


def shape_of(text: str) -> Shape:
    """Per family: its type, the label names of each sample name, and its buckets in order."""
    shapes: Shape = {}
    for family in text_string_to_metric_families(text):
        labels: dict[str, set[frozenset[str]]] = {}
        buckets: dict[str, None] = {}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).add(frozenset(sample.labels))
            if "le" in sample.labels:
                buckets[sample.labels["le"]] = None
        shapes[family.name] = (family.type, labels, list(buckets))
    return shapes


def compare_with_recording(text: str, recording: str) -> None:
    ours, theirs = shape_of(text), shape_of((RECORDINGS / recording).read_text())
    assert ours.keys() >= REQUIRED
    assert ours == {name: theirs.get(name) for name in ours}
    missing = {name for name in theirs.keys() - ours.keys() if name.startswith("vllm:")}
    assert not missing


@pytest.mark.parametrize("recording", ["idle", "busy", "preempting"])
def test_the_metrics_have_the_names_types_labels_and_buckets_of_a_recording(
    node: SimulatedNode, recording: str
) -> None:
    node.complete()
    text = node.get("/metrics").text
    compare_with_recording(text, f"vllm-0.32.0-{recording}.txt")
    assert shape_of(text).keys() >= REQUIRED_OF_ONE_ENGINE
    assert 40_000 < len(text) < 60_000


def test_the_metrics_count_what_happened() -> None:
    with start_node() as node:
        node.complete(5)
        node.complete(6)
        for name, value in {
            "vllm:generation_tokens_total": 11,
            "vllm:prompt_tokens_total": 4,
            "vllm:request_generation_tokens_sum": 11,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 9,
            "vllm:e2e_request_latency_seconds_count": 2,
            "vllm:iteration_tokens_total_sum": 15,
        }.items():
            assert node.samples(name) == [value], name
        assert node.samples("vllm:request_success_total") == [0, 2, 0, 0, 0]
        assert node.samples("vllm:kv_cache_usage_perc") == [0]


def test_the_content_type_differs_on_head(node: SimulatedNode) -> None:
    assert node.get("/metrics").headers["Content-Type"] == "text/plain; version=1.0.0; charset=utf-8"
    head = requests.head(f"{node.url}/metrics", timeout=DEADLINE_SECONDS)
    assert head.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


# -- control and faults -----------------------------------------------------------------------------


def test_sleeping_engines_show_it_and_keep_requests_waiting(node: SimulatedNode) -> None:
    node.control(sleep=1)
    assert node.samples("vllm:engine_sleep_state") == [0, 1, 0]
    with socket.create_connection(("127.0.0.1", node.port), DEADLINE_SECONDS) as connection:
        connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"prompt":"a"}')
        wait_until(lambda: node.samples("vllm:num_requests_waiting") == [1], "the request waits")
        assert node.samples("vllm:num_requests_waiting_by_reason") == [1, 0]
        node.control(sleep=0)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert node.samples("vllm:engine_sleep_state") == [1, 0, 0]


def test_speed_changes_at_run_time(node: SimulatedNode) -> None:
    assert node.control(speed=0.25)["speed"] == 0.25
    assert node.control()["speed"] == 0.25


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be a JSON object"),
        ('{"spede": 1}', "spede: unknown; allowed: speed, sleep, faults"),
        ('{"speed": 0}', "speed: 0: must be a number above 0"),
        ('{"speed": NaN}', "speed: nan: must be a number above 0"),
        ('{"sleep": 3}', "sleep: 3: allowed"),
        ('{"faults": ["hang"]}', "faults: must be an object"),
        ('{"faults": {"hung": {}}}', "faults.hung: unknown; allowed: hang, slow_drip"),
        ('{"faults": {"hang": true}}', "faults.hang: must be an object, or null"),
        ('{"faults": {"hang": {"for": 1}}}', "faults.hang.for: unknown setting"),
        ('{"faults": {"hang": {"scope": "all"}}}', "allowed: both, metrics, api"),
        ('{"faults": {"nan": {"scope": "api"}}}', "allowed: metrics"),
        ('{"faults": {"status": {"code": 99}}}', "faults.status.code: 99: allowed: 200 to 599"),
    ],
)
def test_a_wrong_control_request_changes_nothing(node: SimulatedNode, body: str, message: str) -> None:
    before = node.control()
    answer = requests.put(f"{node.url}/control", data=body, timeout=DEADLINE_SECONDS)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert node.control() == before


def test_a_fault_is_shown_and_ended_by_null(node: SimulatedNode) -> None:
    state = node.control(faults={"status": {"scope": "api"}, "nan": {}})
    assert state["faults"] == {"status": {"scope": "api", "code": 500}, "nan": {"scope": "metrics"}}
    assert node.control(faults={"nan": None})["faults"].keys() == {"status"}
    assert node.clear_faults()["faults"] == {}


def test_hang(node: SimulatedNode) -> None:
    node.control(faults={"hang": {"scope": "metrics"}})
    with socket.create_connection(("127.0.0.1", node.port), 0.3) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert node.complete()
        node.clear_faults()
        connection.settimeout(DEADLINE_SECONDS)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_slow_drip(node: SimulatedNode) -> None:
    node.control(faults={"slow_drip": {"bytes_per_second": 50}})
    with node.get("/metrics", stream=True) as answer:
        first = answer.raw.read1(65536)
        assert 0 < len(first) < 1000
        assert 0 < len(answer.raw.read1(65536)) < 1000
        node.clear_faults()
    node.control(faults={"slow_drip": {"bytes_per_second": 50, "scope": "api"}})
    with open_stream(node, max_tokens=3) as pieces:
        node.clear_faults()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_status(node: SimulatedNode) -> None:
    node.control(faults={"status": {"scope": "metrics", "code": 503}})
    assert node.get("/metrics").status_code == 503
    assert node.complete()
    node.control(faults={"status": {"scope": "api"}})
    assert node.get("/metrics").status_code == 200
    with node.client() as client, pytest.raises(openai.InternalServerError, match="simulated fault"):
        client.models.list()


def test_wrong_content(node: SimulatedNode) -> None:
    node.control(faults={"wrong_content": {"scope": "metrics"}})
    answer = node.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert node.complete()


def test_close_cuts_a_page_and_a_stream_under_way(node: SimulatedNode) -> None:
    with open_stream(node) as pieces:
        node.control(faults={"close": {}})
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(pieces)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        node.get("/metrics")


def test_nan(node: SimulatedNode) -> None:
    node.control(faults={"nan": {}})
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert all(math.isnan(value) for value in node.samples(f"vllm:{gauge}"))
    assert not math.isnan(node.samples("vllm:generation_tokens_total")[0])
    node.clear_faults()
    assert node.samples("vllm:num_requests_running") == [0]


def test_counter_reset_happens_once(node: SimulatedNode) -> None:
    node.complete()
    created = node.samples("vllm:generation_tokens_created")[0]
    assert node.samples("vllm:generation_tokens_total")[0] > 0
    assert node.control(faults={"counter_reset": {}})["faults"] == {}
    assert node.samples("vllm:generation_tokens_total") == [0]
    assert node.samples("vllm:time_to_first_token_seconds_count") == [0]
    assert node.samples("vllm:generation_tokens_created")[0] > created
    node.complete(4)
    assert node.samples("vllm:generation_tokens_total") == [4]


def test_frozen(node: SimulatedNode) -> None:
    node.control(faults={"frozen": {}})
    before = node.get("/metrics").text
    with open_stream(node):
        assert node.get("/metrics").text == before
        assert node.running() == [1]
        node.clear_faults()
        assert node.samples("vllm:num_requests_running") == [1]


def test_refuse_closes_the_port_and_opens_it_again(node: SimulatedNode) -> None:
    with open_stream(node) as pieces:
        node.control(faults={"refuse": {}})
        with pytest.raises(requests.exceptions.RequestException):
            list(pieces)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", node.port), DEADLINE_SECONDS).close()
    wait_until(lambda: node.running() == [0], "the cut request is aborted")
    node.clear_faults()
    assert node.complete()


def test_refuse_needs_a_control_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [PYTHON, "-m", "simulator", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
        url = f"http://127.0.0.1:{port}/control"
        answer = requests.put(url, json={"faults": {"refuse": {}}}, timeout=DEADLINE_SECONDS)
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "faults.refuse: needs --control-port, or nobody could end it",
        )
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0
