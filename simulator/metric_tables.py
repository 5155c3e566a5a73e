"""Names, help texts, buckets and label values of the metrics of vLLM 0.32, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from simulator.engine_records import Counters

_REQUEST_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_STEP_TOKENS = (1.0, *(float(2**power) for power in range(3, 15)))
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_NEXT_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

# By name: help text, upper bounds of the buckets.
HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "request_prompt_tokens": ("Prompt tokens per finished request.", _REQUEST_TOKENS),
    "request_generation_tokens": ("Generated tokens per finished request.", _REQUEST_TOKENS),
    "iteration_tokens_total": ("Prompt and output tokens per step; a histogram in spite of its name.", _STEP_TOKENS),
    "request_max_num_generation_tokens": ("Most tokens a request could generate.", _REQUEST_TOKENS),
    "request_params_n": ("The parameter n of requests.", (1.0, 2.0, 5.0, 10.0, 20.0)),
    "request_params_max_tokens": ("The parameter max_tokens of requests.", _REQUEST_TOKENS),
    "time_to_first_token_seconds": ("From arrival to the first token.", _FIRST_TOKEN),
    "inter_token_latency_seconds": ("Between two tokens of a request.", _NEXT_TOKEN),
    "request_time_per_output_token_seconds": ("Mean time per output token of a request.", _NEXT_TOKEN),
    "e2e_request_latency_seconds": ("From arrival to the last token.", _REQUEST_SECONDS),
    "request_queue_time_seconds": ("From arrival to the first step.", _REQUEST_SECONDS),
    "request_inference_time_seconds": ("From the first step to the last token.", _REQUEST_SECONDS),
    "request_prefill_time_seconds": ("From the first step to the first token.", _REQUEST_SECONDS),
    "request_decode_time_seconds": ("From the first to the last token.", _REQUEST_SECONDS),
    "request_num_preemptions": ("Preemptions per finished request.", (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)),
    "request_prefill_kv_computed_tokens": ("Prompt tokens computed per request.", _REQUEST_TOKENS),
}

# By name: help text, what is read; None for a counter that stays 0 here.
COUNTERS: Mapping[str, tuple[str, Callable[[Counters], int] | None]] = {
    "estimated_flops_per_gpu": ("Floating point operations per GPU (not simulated).", None),
    "estimated_read_bytes_per_gpu": ("Bytes read from memory per GPU (not simulated).", None),
    "estimated_write_bytes_per_gpu": ("Bytes written to memory per GPU (not simulated).", None),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda c: c.queried_tokens),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda c: c.hit_tokens),
    "external_prefix_cache_queries": ("Tokens looked up in an external cache.", None),
    "external_prefix_cache_hits": ("Tokens found in an external cache.", None),
    "mm_cache_queries": ("Items looked up in the multi-modal cache.", None),
    "mm_cache_hits": ("Items found in the multi-modal cache.", None),
    "num_preemptions": ("Requests thrown out of a full cache.", lambda c: c.preemptions),
    "prompt_tokens": ("Prompt tokens processed.", lambda c: c.prompt_tokens),
    "prompt_tokens_cached": ("Prompt tokens taken from a cache.", lambda c: c.hit_tokens),
    "generation_tokens": ("Tokens generated.", lambda c: c.generation_tokens),
}

PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHE_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")  # in the order of the sleep levels 0, 1, 2

# vLLM shows its whole cache configuration as labels. metrics.py overrides those that the simulator has a value for.
CACHE_CONFIG = {
    **dict.fromkeys(
        (
            *("cache_hit_alignment_tokens", "hash_block_size", "kv_cache_layout", "kv_offloading_size"),
            *("mamba_block_size", "mamba_page_size_padded", "num_cpu_blocks", "prefix_match_unit"),
            *("skip_page_size_padded", "sliding_window"),
        ),
        "None",
    ),
    **dict.fromkeys(
        (
            *("enable_mamba_shared_prefix_checkpoint", "is_attention_free"),
            *("kv_sharing_fast_prefill", "use_kda_recoverssm", "use_replayssm", "user_specified_block_size"),
        ),
        "False",
    ),
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "gpu_memory_utilization": "0.9",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_memory_bytes": "17179869184",
    "kv_offloading_backend": "native",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_ssm_cache_dtype": "float32",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "replayssm_buffer_len": "16",
    "swa_bounded_replay": "True",
}
