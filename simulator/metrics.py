"""The node's /metrics page: names, types, labels and buckets of vLLM 0.32, built when it is asked for."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from simulator.engine import Counters, Engine, Request, StepReport

# What vLLM answers; its other answer is what a HEAD request gets there.
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
CONTENT_TYPE_HEAD = "text/plain; version=0.0.4; charset=utf-8"

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

# name: (help, bucket bounds)
_HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
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

# name: (help, what it reads; None for one this simulator never moves)
_COUNTERS: Mapping[str, tuple[str, Callable[[Counters], int] | None]] = {
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

_PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_CACHE_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")  # in the order of the sleep levels 0, 1, 2

# vLLM shows its whole cache configuration as labels. Those that say something here are filled in later.
_CACHE_CONFIG = {
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


class _Histogram:
    """Counts per bucket, the last one unbounded."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class EngineMetrics:
    """What one engine shows beyond its own counters: histograms and how requests ended."""

    def __init__(self, engine: Engine) -> None:
        """Watch an engine from now on."""
        self.engine = engine
        self.sleep_level = 0
        self.reset()

    def reset(self) -> None:
        """Start every counter and histogram at zero again, as after a restart."""
        self.engine.counters = type(self.engine.counters)()
        self.histograms = {name: _Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self.ended = dict.fromkeys(_FINISH_REASONS, 0)
        self.created = time.time()

    def observe_step(self, report: StepReport) -> None:
        """Take in one finished step."""
        first_token = self.histograms["time_to_first_token_seconds"].observe
        next_token = self.histograms["inter_token_latency_seconds"].observe
        tokens = len(report.advanced)
        for request in report.advanced:
            if request.generated == 1:
                tokens += request.prompt_tokens
                first_token(report.ends_at - request.arrived_at)
            else:
                next_token(request.token_gap)
        self.histograms["iteration_tokens_total"].observe(tokens)
        for request in report.finished:
            self._observe_finished(request)

    def _observe_finished(self, request: Request) -> None:
        scheduled, first, last = request.scheduled_at, request.first_token_at, request.token_at
        if scheduled is None or first is None or last is None:
            raise ValueError(f"request {request.request_id} is not finished")
        self.ended["length"] += 1
        observed = {
            "request_prompt_tokens": request.prompt_tokens,
            "request_prefill_kv_computed_tokens": request.prompt_tokens,
            "request_generation_tokens": request.generated,
            "request_max_num_generation_tokens": request.max_tokens,
            "request_params_max_tokens": request.max_tokens,
            "request_params_n": 1,
            "request_num_preemptions": request.preemptions,
            "e2e_request_latency_seconds": last - request.arrived_at,
            "request_queue_time_seconds": scheduled - request.arrived_at,
            "request_inference_time_seconds": last - scheduled,
            "request_prefill_time_seconds": first - scheduled,
            "request_decode_time_seconds": last - first,
            "request_time_per_output_token_seconds": (last - first) / max(1, request.generated - 1),
        }
        for name, value in observed.items():
            self.histograms[name].observe(value)


class NodeCollector(Collector):
    """Turns the engines of a node into metric families.

    Attributes:
        nan: show NaN in place of every gauge's value.
    """

    def __init__(self, model: str, engines: Sequence[EngineMetrics], *, old_names: bool = False) -> None:
        """Collect from these engines; `old_names` gives the KV cache gauge its name before vLLM 0.9."""
        self.model = model
        self.engines = engines
        self.nan = False
        self._kv_gauge = "vllm:gpu_cache_usage_perc" if old_names else "vllm:kv_cache_usage_perc"
        # Several engines report through prometheus_client's multi-process mode, which knows no creation times.
        self._show_created = len(engines) == 1

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        yield from self._gauges()
        yield self._cache_config()
        yield from self._plain_counters()
        yield from self._labelled_counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        def family(
            name: str, text: str, read: Callable[[EngineMetrics], Mapping[str, float]], label: str = ""
        ) -> Metric:
            gauge = GaugeMetricFamily(name, text, labels=["engine", "model_name", *filter(None, [label])])
            for index, engine in enumerate(self.engines):
                for value_of_label, value in read(engine).items():
                    labels = [str(index), self.model, *filter(None, [value_of_label])]
                    gauge.add_metric(labels, math.nan if self.nan else value)
            return gauge

        yield family("vllm:num_requests_running", "Requests in the batch.", lambda e: {"": len(e.engine.running)})
        yield family("vllm:num_requests_waiting", "Requests in the queue.", lambda e: {"": len(e.engine.waiting)})
        yield family(
            "vllm:num_requests_waiting_by_reason",
            "Requests in the queue by reason; the reasons sum to vllm:num_requests_waiting.",
            lambda e: {"capacity": len(e.engine.waiting), "deferred": 0},
            "reason",
        )
        yield family(
            "vllm:engine_sleep_state",
            "1 at the state the engine is in; awake 0 means asleep.",
            lambda e: {state: float(e.sleep_level == level) for level, state in enumerate(_SLEEP_STATES)},
            "sleep_state",
        )
        yield family(self._kv_gauge, "Used share of the KV cache, 0 to 1.", lambda e: {"": e.engine.kv_cache_usage})

    def _cache_config(self) -> Metric:
        values = [self._cache_config_labels(index) for index in range(len(self.engines))]
        gauge = GaugeMetricFamily(
            "vllm:cache_config_info", "Configuration of the KV cache, as labels.", labels=list(values[0])
        )
        for labels in values:
            gauge.add_metric(list(labels.values()), 1)
        return gauge

    def _cache_config_labels(self, index: int) -> dict[str, str]:
        config = self.engines[index].engine.config
        size = config.num_blocks * config.block_size
        known = {
            "engine": str(index),
            "block_size": str(config.block_size),
            "effective_attention_block_size": str(config.block_size),
            "num_gpu_blocks": str(config.num_blocks * len(self.engines)),
            "num_gpu_blocks_override": str(config.num_blocks),
            "enable_prefix_caching": str(config.prefix_caching),
            "kv_cache_size_tokens": str(size),
            "kv_cache_max_concurrency": str(size / config.max_model_len),
        }
        return _CACHE_CONFIG | known

    def _plain_counters(self) -> Iterator[Metric]:
        for name, (text, read) in _COUNTERS.items():
            family = CounterMetricFamily(f"vllm:{name}", text, labels=["engine", "model_name"])
            for index, engine in enumerate(self.engines):
                value = read(engine.engine.counters) if read else 0
                family.add_metric([str(index), self.model], value, created=self._created(engine))
            yield family

    def _labelled_counters(self) -> Iterator[Metric]:
        def family(name: str, text: str, label: str, read: Callable[[EngineMetrics], Mapping[str, float]]) -> Metric:
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["engine", label, "model_name"])
            for index, engine in enumerate(self.engines):
                for key, value in read(engine).items():
                    counter.add_metric([str(index), key, self.model], value, created=self._created(engine))
            return counter

        def by_source(engine: EngineMetrics) -> Mapping[str, float]:
            total, hits = engine.engine.counters.prompt_tokens, engine.engine.counters.hit_tokens
            # A hit counts when the prompt starts, the prompt when it is done.
            return dict.fromkeys(_PROMPT_SOURCES, 0) | {
                "local_compute": max(0, total - hits),
                "local_cache_hit": hits,
            }

        yield family("prompt_tokens_by_source", "Prompt tokens by where they came from.", "source", by_source)
        yield family(
            "prompt_tokens_cached_by_source",
            "Cached prompt tokens by the tier that held them.",
            "source",
            lambda engine: dict.fromkeys(_CACHE_TIERS, 0) | {"device": engine.engine.counters.hit_tokens},
        )
        yield family("request_success", "Finished requests.", "finished_reason", lambda engine: engine.ended)
        rejections = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused by a queue limit.", labels=["model_name", "reason"]
        )
        for limit in _QUEUE_LIMITS:
            rejections.add_metric([self.model, limit], 0, created=self._created(self.engines[0]))
        yield rejections

    def _histograms(self) -> Iterator[Metric]:
        for name, (text, _) in _HISTOGRAMS.items():
            full_name = f"vllm:{name}"
            family = HistogramMetricFamily(full_name, text, labels=["engine", "model_name"])
            for index, engine in enumerate(self.engines):
                histogram = engine.histograms[name]
                family.add_metric([str(index), self.model], histogram.buckets(), histogram.total)
                if self._show_created:
                    labels = {"engine": str(index), "model_name": self.model}
                    family.add_sample(f"{full_name}_created", labels, engine.created)
            yield family

    def _created(self, engine: EngineMetrics) -> float | None:
        return engine.created if self._show_created else None


class MetricsPage:
    """The text of /metrics."""

    def __init__(self, collector: NodeCollector) -> None:
        """Show what this collector finds, and like vLLM the Python process when there is one engine."""
        self.collector = collector
        self._frozen: bytes | None = None
        self._registry = CollectorRegistry()
        if len(collector.engines) == 1:
            GCCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            ProcessCollector(registry=self._registry)
        self._registry.register(collector)

    def render(self) -> bytes:
        """Return the page as it is now, or as it was when it was frozen."""
        return self._frozen or generate_latest(self._registry)

    def freeze(self) -> None:
        """Show today's page until thaw()."""
        self._frozen = self.render()

    def thaw(self) -> None:
        """Follow the engines again."""
        self._frozen = None
