"""The histograms of one engine, and how its requests ended."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from simulator.metric_tables import FINISH_REASONS, HISTOGRAMS

if TYPE_CHECKING:
    from simulator.engine import Engine
    from simulator.engine_records import Request, StepReport


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


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine has reported of its present load; the cache's usage is 0 to 1."""

    running: int
    waiting: int
    kv_cache_usage: float


class EngineMetrics:
    """Histograms and finish reasons of one engine. The engine itself has its counters.

    Attributes:
        reported: whether a step has ended since the start, so that the engine has said anything.
        stuck: what the gauges show while the engine reports nothing, else None.
    """

    def __init__(self, engine: Engine) -> None:
        """Start at zero for an engine."""
        self.engine = engine
        self.sleep_level = 0
        self.stuck: Gauges | None = None
        self.reset()

    @property
    def gauges(self) -> Gauges:
        """The present load, or the last one that was reported."""
        engine = self.engine
        return self.stuck or Gauges(len(engine.running), len(engine.waiting), engine.kv_cache_usage)

    def reset(self) -> None:
        """Start every counter and histogram at zero again, as after a restart."""
        self.reported = False
        self.engine.counters = type(self.engine.counters)()
        self.histograms = {name: _Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.ended = dict.fromkeys(FINISH_REASONS, 0)
        self.created = time.time()

    def observe_step(self, report: StepReport) -> None:
        """Record a finished step."""
        self.reported = True
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
