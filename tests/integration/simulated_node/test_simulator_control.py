"""/control of the simulated node, and its faults, over real sockets."""

from __future__ import annotations

import math
import socket
import subprocess
from typing import TYPE_CHECKING

import openai
import pytest
import requests

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, PYTHON, ROOT, open_stream, wait_until

if TYPE_CHECKING:
    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured


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
            "faults.refuse: needs --control-port, without which it could not be ended",
        )
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0
