"""The node's /metrics page, with the names, types, labels and buckets of vLLM 0.32; built for each scrape."""

from __future__ import annotations

import math
import re
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
CONTENT_TYPE_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class NodeCollector(Collector):
    """Turns the engines of a node into metric families.

    Attributes:
        nan: show NaN in place of every gauge's value.
        no_stats: show no family at all.
        unset: the gauges of the load have no samples until an engine has reported.
    """

    def __init__(
        self, model: str, engines: Sequence[EngineMetrics], *, several_processes: bool, old_names: bool = False
    ) -> None:
        """Collect from these engines.

        Args:
            model: the name of the served model.
            engines: one or more.
            several_processes: whether several API servers share the page. They do it by prometheus_client's
                multi-process mode, which knows no creation times and leaves out gauges that were never set.
            old_names: give the KV cache gauge its name before vLLM 0.9.
        """
        self.model = model
        self.engines = engines
        self.nan = False
        self.no_stats = False
        self.unset = several_processes
        self.rejections = dict.fromkeys(QUEUE_LIMITS, 0)
        self._kv_gauge = "vllm:gpu_cache_usage_perc" if old_names else "vllm:kv_cache_usage_perc"
        self._show_created = not several_processes

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        if self.no_stats:
            return
        yield from self._gauges()
        yield self._cache_config()
        yield from self._plain_counters()
        yield from self._labelled_counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        speaking = [] if self.unset and not any(engine.reported for engine in self.engines) else self.engines

        def family(
            name: str,
            text: str,
            read: Callable[[EngineMetrics], Mapping[str, float]],
            label: str = "",
            engines: Sequence[EngineMetrics] = speaking,
        ) -> Metric:
            gauge = GaugeMetricFamily(name, text, labels=["engine", "model_name", *filter(None, [label])])
            for index, engine in enumerate(engines):
                for value_of_label, value in read(engine).items():
                    labels = [str(index), self.model, *filter(None, [value_of_label])]
                    gauge.add_metric(labels, math.nan if self.nan else value)
            return gauge

        yield family("vllm:num_requests_running", "Requests in the batch.", lambda e: {"": e.gauges.running})
        yield family("vllm:num_requests_waiting", "Requests in the queue.", lambda e: {"": e.gauges.waiting})
        yield family(
            "vllm:num_requests_waiting_by_reason",
            "Requests in the queue by reason; the reasons sum to vllm:num_requests_waiting.",
            lambda e: {"capacity": e.gauges.waiting, "deferred": 0},
            "reason",
        )
        yield family(
            "vllm:engine_sleep_state",
            "1 at the state the engine is in; awake 0 means asleep.",
            lambda e: {state: float(e.sleep_level == level) for level, state in enumerate(SLEEP_STATES)},
            "sleep_state",
            self.engines,
        )
        yield family(self._kv_gauge, "Used share of the KV cache, 0 to 1.", lambda e: {"": e.gauges.kv_cache_usage})

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
            rejections.add_metric([self.model, limit], self.rejections[limit], created=self._created(self.engines[0]))
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


def _as_openmetrics(page: bytes) -> bytes:
    """Return a page in the format OpenMetrics: a counter has no `_total` in its family's name, nothing was created."""
    page = re.sub(rb"(?m)^(?:# (?:HELP|TYPE) )?\S+_created[{ ].*\n", b"", page)
    for name in re.findall(rb"(?m)^# TYPE (\S+)_total counter$", page):
        page = re.sub(rb"(?m)^(# (?:HELP|TYPE) %b)_total " % name, rb"\1 ", page)
    return page + b"# EOF\n"


class MetricsPage:
    """Renders /metrics, or keeps an old page.

    Attributes:
        openmetrics: render in the format OpenMetrics, as vLLM's front end in Rust does.
    """

    def __init__(self, collector: NodeCollector, requests: Collector, *, several_processes: bool) -> None:
        """Show the families of two collectors and, as vLLM with one API server does, those of the Python process."""
        self.collector = collector
        self.openmetrics = False
        self._frozen: bytes | None = None
        self._registry = CollectorRegistry()
        if not several_processes:
            GCCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            ProcessCollector(registry=self._registry)
        self._registry.register(collector)
        self._registry.register(requests)

    @property
    def content_type(self) -> str:
        """The Content-Type of an answer to GET."""
        return CONTENT_TYPE_OPENMETRICS if self.openmetrics else CONTENT_TYPE

    def render(self) -> bytes:
        """Return the page as it is now, or as it was when it was frozen."""
        page = self._frozen or generate_latest(self._registry)
        return _as_openmetrics(page) if self.openmetrics else page

    def freeze(self) -> None:
        """Keep the present page until thaw()."""
        self._frozen = self.render()

    def thaw(self) -> None:
        """Render again."""
        self._frozen = None
