"""/metrics of the simulated node, beside recordings of vLLM's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, start_node
from tests.integration.simulated_node.recording import RECORDINGS, compare_with_recording, families_of

if TYPE_CHECKING:
    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured


# Each recording, with the options of its engine and the requests that had ended.
@pytest.mark.parametrize(
    ("recording", "options", "requests_before"),
    [
        ("vllm-0.32.0-idle.txt", [], 0),
        ("vllm-0.32.0-busy.txt", [], 1),
        ("vllm-0.32.0-preempting.txt", [], 1),
        ("vllm-0.32.0-api2-idle.txt", ["--api-servers", "2"], 0),
        ("vllm-0.32.0-api2-busy.txt", ["--api-servers", "2"], 1),
    ],
)
def test_the_metrics_have_the_families_of_a_recording(recording: str, options: list[str], requests_before: int) -> None:
    with start_node(*options) as node:
        for _ in range(requests_before):
            node.complete()
        text = node.get("/metrics").text
        compare_with_recording(text, recording)
        assert 30_000 < len(text) < 60_000


def test_vllm_0_33_has_the_families_of_the_simulated_version(node: SimulatedNode) -> None:
    node.complete()
    families = json.loads((RECORDINGS / "vllm-0.33.0-families.json").read_text())
    families["vllm:cache_config_info"][1]["vllm:cache_config_info"][0].remove("simple_cpu_offload_num_blocks")
    assert families_of(node.get("/metrics").text) == families


def test_gauges_of_several_api_servers_have_no_samples_before_the_first_request() -> None:
    with start_node("--api-servers", "2") as node:
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert node.samples(f"vllm:{gauge}") == []
            assert f"# TYPE vllm:{gauge} gauge\n" in node.get("/metrics").text
        assert node.samples("vllm:num_preemptions_total") == [0]
        node.complete()
        assert node.samples("vllm:num_requests_running") == [0]


def test_the_time_between_tokens_sums_up_to_the_time_that_requests_decoded() -> None:
    """Of vLLM too: the sum grows by the number of running requests each second, so scrapes need no samples of it."""
    with start_node("--max-num-seqs", "3", "--num-blocks", "10", "--step-ms", "5") as node:
        with ThreadPoolExecutor(5) as clients:
            list(clients.map(lambda _: node.complete(70), range(5)))
        [count], [total] = (node.samples(f"vllm:inter_token_latency_seconds_{part}") for part in ("count", "sum"))
        assert count == 5 * 69
        assert total == pytest.approx(node.samples("vllm:request_decode_time_seconds_sum")[0])
        assert node.samples("vllm:num_preemptions_total")[0] > 0


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
