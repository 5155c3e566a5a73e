"""Compare a page of metrics with a recording of vLLM's."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.simulated_node.node_process import ROOT

RECORDINGS = ROOT / "tests" / "fixtures"
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
