"""A node in virtual time: the simulator's engine, and what the script reads of it."""

from __future__ import annotations

import vllm_nginx_lb as lb
from benchmarks.scenario import ENGINE
from simulator.engine import Engine


class VirtualNode:
    """One node: an engine, and what its metrics say of it."""

    def __init__(self, index: int, speed: float) -> None:
        """Start idle."""
        self.index = index
        self.engine = Engine(ENGINE, speed)
        self.busy = False
        self.up = True
        self.blind = False
        self.frozen: lb.Sample | None = None
        self.address = f"127.0.0.{index + 2}"
        self.lost_preemptions = 0
        self.finished = 0

    def sample(self) -> lb.Sample:
        """Scrape its metrics, as the script would."""
        if not self.up:
            return lb.Sample(self.address, 0.001, error="connection refused", answered=False)
        if self.blind:
            return lb.Sample(self.address, 0.001, error="HTTP 500")
        return self.frozen or self._read()

    def _read(self) -> lb.Sample:
        engine, counters = self.engine, self.engine.counters
        reading = lb.Reading(
            kv_cache_usage=engine.kv_cache_usage,
            waiting=len(engine.waiting),
            running=len(engine.running),
            preemptions=counters.preemptions,
            engines=1,
            awake=True,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            finished=self.finished,
        )
        return lb.Sample(self.address, 0.02, reading)

    def set_frozen(self, *, frozen: bool) -> None:
        """Let its metrics stand still, or not."""
        self.frozen = self._read() if frozen else None

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens that are not computed yet."""
        engine = self.engine
        return sum(r.prompt_tokens - min(r.computed, r.prompt_tokens) for r in (*engine.running, *engine.waiting))

    @property
    def load(self) -> int:
        """Requests it has."""
        return len(self.engine.running) + len(self.engine.waiting)
