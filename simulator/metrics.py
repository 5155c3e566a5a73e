"""The node's /metrics page, with the names, types, labels and buckets of vLLM 0.32; built for each scrape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from simulator.metric_tables import (
    CACHE_CONFIG,
    CACHE_TIERS,
    COUNTERS,
    HISTOGRAMS,
    PROMPT_SOURCES,
    QUEUE_LIMITS,
    SLEEP_STATES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from simulator.engine_metrics import EngineMetrics

# vLLM answers a GET with CONTENT_TYPE, and a HEAD with another type.
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
CONTENT_TYPE_HEAD = "text/plain; version=0.0.4; charset=utf-8"


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
            lambda e: {state: float(e.sleep_level == level) for level, state in enumerate(SLEEP_STATES)},
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
        return CACHE_CONFIG | known

    def _plain_counters(self) -> Iterator[Metric]:
        for name, (text, read) in COUNTERS.items():
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
            # vLLM counts cached tokens when a prompt starts, and all its tokens when the prompt is computed.
            return dict.fromkeys(PROMPT_SOURCES, 0) | {
                "local_compute": max(0, total - hits),
                "local_cache_hit": hits,
            }

        yield family("prompt_tokens_by_source", "Prompt tokens by where they came from.", "source", by_source)
        yield family(
            "prompt_tokens_cached_by_source",
            "Cached prompt tokens by the tier that held them.",
            "source",
            lambda engine: dict.fromkeys(CACHE_TIERS, 0) | {"device": engine.engine.counters.hit_tokens},
        )
        yield family("request_success", "Finished requests.", "finished_reason", lambda engine: engine.ended)
        rejections = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused by a queue limit.", labels=["model_name", "reason"]
        )
        for limit in QUEUE_LIMITS:
            rejections.add_metric([self.model, limit], 0, created=self._created(self.engines[0]))
        yield rejections

    def _histograms(self) -> Iterator[Metric]:
        for name, (text, _) in HISTOGRAMS.items():
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
    """Renders /metrics, or keeps an old page."""

    def __init__(self, collector: NodeCollector) -> None:
        """Show the families of a collector and, as vLLM with one engine does, those of the Python process."""
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
        """Keep the present page until thaw()."""
        self._frozen = self.render()

    def thaw(self) -> None:
        """Render again."""
        self._frozen = None
