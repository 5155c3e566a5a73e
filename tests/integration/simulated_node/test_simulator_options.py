"""Options of the simulated node."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import openai
import pytest

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, PYTHON, ROOT, open_stream, start_node
from tests.integration.simulated_node.recording import compare_with_recording

if TYPE_CHECKING:
    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured


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
    with start_node("--engines", "2") as node, open_stream(node), open_stream(node):
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
        (["--fault", "hung"], "faults.hung: unknown; allowed: hang, slow_drip"),
        (["--fault", "nan=1"], "faults.nan: takes no number"),
        (["--fault", "admission_limit=few"], "faults.admission_limit.requests: 'few': allowed: 0 to 999999"),
        (["--fault", "refuse"], "--fault refuse needs --control-port"),
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
