"""A node in virtual time: the simulator's engine, and the sample of a scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.engine import Engine
from simulator.engine_records import Request
from vllm_lb.causes import ScrapeCause
from vllm_lb.observation import Reading, Sample

if TYPE_CHECKING:
    from benchmarks.workload import Call
    from simulator.engine_config import EngineConfig


class VirtualNode:
    """One node.

    Attributes:
        index: its number in the fleet, from 0.
        engine: replaced by a new one when the node's process ends.
        busy: whether the engine is in a step.
        up: whether the process runs.
        blind: whether its metrics answer with an error.
        frozen: the reading that its metrics keep while they are frozen, else None.
        lost_preemptions: those of engines before the present one.
        finished: requests that the present engine has finished.
        token_gaps: how many times a token of a request has followed another one.
        token_gap_seconds: the times from the one to the other, summed.
    """

    def __init__(self, index: int, config: EngineConfig, speed: float) -> None:
        """Start idle; `speed` is a factor on that of the engine's configuration."""
        self.index = index
        self.engine = Engine(config, speed)
        self.busy = False
        self.up = True
        self.blind = False
        self.frozen: Sample | None = None
        high, low = divmod(index + 2, 256)
        self.address = f"127.0.{high}.{low}"
        self.lost_preemptions = 0
        self.finished = 0
        self.token_gaps = 0
        self.token_gap_seconds = 0.0

    @property
    def name(self) -> str:
        """Its name in the script's configuration."""
        return f"node-{self.index}"

    def sample(self) -> Sample:
        """Return the sample that the script's scrape would give."""
        if not self.up:
            cause = ScrapeCause.CONNECTION_REFUSED
            return Sample(self.address, 0.001, error="connection refused", cause=cause, answered=False)
        if self.blind:
            return Sample(self.address, 0.001, error="HTTP 500", cause=ScrapeCause.HTTP_STATUS)
        return self.frozen or self._read()

    def _read(self) -> Sample:
        engine, counters = self.engine, self.engine.counters
        reading = Reading(
            kv_cache_usage=engine.kv_cache_usage,
            waiting=len(engine.waiting),
            running=len(engine.running),
            preemptions=counters.preemptions,
            engines=1,
            awake=True,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            finished=self.finished,
            token_gaps=self.token_gaps,
            token_gap_seconds=self.token_gap_seconds,
            kv_cache_tokens=engine.config.num_blocks * engine.config.block_size,
        )
        return Sample(self.address, 0.02, reading)

    def set_frozen(self, *, frozen: bool) -> None:
        """Freeze the node's metrics, or let them change again."""
        self.frozen = self._read() if frozen else None

    def request(self, call: Call) -> Request:
        """Return a call as the engine takes it. The blocks of its answer can be shared too, as in vLLM."""
        return Request("", call.prompt_tokens, call.output_tokens, call.blocks(self.engine.config.block_size))

    def cached_tokens(self, call: Call) -> int:
        """Return how many tokens of a call's prompt are in the node's cache now."""
        return self.engine.cached_tokens(self.request(call))

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens of all its requests that are not computed yet."""
        engine = self.engine
        return sum(r.prompt_tokens - min(r.computed, r.prompt_tokens) for r in (*engine.running, *engine.waiting))

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self.engine.running) + len(self.engine.waiting)
