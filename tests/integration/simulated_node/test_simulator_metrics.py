"""/metrics of the simulated node, beside recordings of vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, start_node
from tests.integration.simulated_node.recording import REQUIRED_OF_ONE_ENGINE, compare_with_recording, shape_of

if TYPE_CHECKING:
    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured


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
