"""One simulated inference engine: continuous batching over a bounded KV cache, in steps.

Pure and deterministic: no clock, no randomness, no I/O. The caller owns the time, real or virtual:

    engine.submit(request, now)          whenever a request arrives
    ends_at = engine.begin(now)          schedules one step; None when there is nothing to do
    report = engine.finish()             when the caller's clock has reached ends_at; then begin() again

Times are seconds on the caller's clock, sizes are tokens or blocks.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from simulator.block_pool import BlockPool
from simulator.engine_records import Counters, StepReport

if TYPE_CHECKING:
    from simulator.engine_config import EngineConfig
    from simulator.engine_records import Request


class Engine:
    """Schedules requests first come, first served; the running ones, then the waiting ones, are in arrival order.

    Attributes:
        speed: factor on the pace of every later step, > 0; 0.5 makes steps last twice as long.
        counters: may be replaced by a fresh one, as a restart would.
    """

    def __init__(self, config: EngineConfig, speed: float = 1.0) -> None:
        """Start empty."""
        self.config = config
        self.speed = speed
        self.counters = Counters()
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self._pool = BlockPool(config.num_blocks)
        self._step: StepReport | None = None
        self._batch: list[tuple[Request, int]] = []

    @property
    def free_blocks(self) -> int:
        """Cache blocks that no request holds."""
        return self._pool.free

    @property
    def used_blocks(self) -> int:
        """Cache blocks held by running requests."""
        return self.config.num_blocks - self.free_blocks

    @property
    def kv_cache_usage(self) -> float:
        """Used share of the cache, 0 to 1."""
        return self.used_blocks / self.config.num_blocks

    @property
    def step_ends_at(self) -> float | None:
        """When the step under way ends; None between steps."""
        return self._step.ends_at if self._step else None

    def copy(self) -> Engine:
        """Return an engine in the same state, with copies of the requests and with counters from zero."""
        twin = Engine(self.config, self.speed)
        copies = {request: copy.copy(request) for request in (*self.running, *self.waiting)}
        twin.running, twin.waiting = [copies[r] for r in self.running], deque(copies[r] for r in self.waiting)
        twin._pool = self._pool.copy()
        if self._step:
            twin._step = replace(self._step, advanced=[], finished=[], preempted=[])
        twin._batch = [(copies[each], tokens) for each, tokens in self._batch if not each.aborted]
        return twin

    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request would be found in the prefix cache now."""
        return self._cached_blocks(request) * self.config.block_size

    def submit(self, request: Request, now: float) -> None:
        """Put a new request at the end of the waiting queue; raises ValueError as EngineConfig.check_size does."""
        self.config.check_size(request.prompt_tokens, request.max_tokens)
        request.arrived_at = now
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Forget a request at once and free its blocks; nothing happens if it is already gone."""
        if request.finished or request.aborted:
            return
        request.aborted = True
        if request.blocks:  # every running request holds some
            self.running.remove(request)
            self._release(request)
        else:
            self.waiting.remove(request)

    def begin(self, now: float) -> float | None:
        """Schedule one step of the requests that have arrived by `now`.

        Returns:
            When the step ends, or None if there is nothing to compute.

        Raises:
            RuntimeError: the step before was not finished.
        """
        if self._step is not None:
            raise RuntimeError("begin() before finish() of the step under way")
        step = StepReport(started_at=now)
        budget = self._schedule_running(step, self.config.max_num_batched_tokens)
        if not step.preempted:  # else a request that was just preempted would be admitted again
            self._schedule_waiting(step, budget)
        if not self._batch:
            return None
        step.ends_at = now + self.config.seconds_of_step(step.prefill_tokens, step.decodes) / self.speed
        self._step = step
        return step.ends_at

    def finish(self) -> StepReport:
        """End the step under way: give each request its token, and drop complete ones.

        Raises:
            RuntimeError: no step is under way.
        """
        step = self._step
        if step is None:
            raise RuntimeError("finish() without begin()")
        for request, tokens in self._batch:
            if request.aborted:
                continue
            request.computed += tokens
            self._publish(request)
            if request.computed == request.prompt_tokens + request.generated:
                self._add_token(request, step)
        if step.finished:
            self.running = [request for request in self.running if not request.finished]
        self.counters.generation_tokens += len(step.advanced)
        self.counters.steps += 1
        self._step = None
        self._batch.clear()
        return step

    def _schedule_running(self, step: StepReport, budget: int) -> int:
        """Continue running requests, oldest first; return the token budget left."""
        position = 0
        while budget and position < len(self.running):
            request = self.running[position]
            tokens = min(request.prompt_tokens + request.generated - request.computed, budget)
            if not self._make_room(request, tokens, step):
                break
            self._add_to_batch(request, tokens, step)
            budget -= tokens
            position += 1
        return budget

    def _schedule_waiting(self, step: StepReport, budget: int) -> None:
        """Admit waiting requests in order until budget, batch or cache is full."""
        while budget and self.waiting and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            if request.arrived_at > step.started_at:
                break
            found = request.prefix[: self._cached_blocks(request)]
            uncached = request.prompt_tokens + request.generated - len(found) * self.config.block_size
            tokens = min(uncached, budget)
            needed = uncached if self.config.reserve_whole_prompt else tokens
            if self._blocks_for(needed) > self._pool.room_with(found):
                break
            self._pool.hold(found)
            request.blocks = request.cached_blocks = len(found)
            request.computed = len(found) * self.config.block_size
            self._reserve(request, tokens)
            self.running.append(self.waiting.popleft())
            if request.scheduled_at is None:
                request.scheduled_at = step.started_at
                self.counters.queried_tokens += request.prompt_tokens
                self.counters.hit_tokens += request.computed
            self._add_to_batch(request, tokens, step)
            budget -= tokens

    def _make_room(self, request: Request, tokens: int, step: StepReport) -> bool:
        """Reserve blocks, preempting the youngest requests first; False if `request` itself was preempted.

        The victims come after `request` in arrival order, so none is in the batch yet.
        """
        while not self._reserve(request, tokens):
            victim = self.running.pop()
            self._release(victim)
            victim.computed = 0
            victim.preemptions += 1
            self.counters.preemptions += 1
            self.waiting.appendleft(victim)
            step.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _cached_blocks(self, request: Request) -> int:
        """Return how many blocks of a request are in the prefix cache; its last token is always computed."""
        if not self.config.prefix_caching:
            return 0
        most = (request.prompt_tokens + request.generated - 1) // self.config.block_size
        return min(self._pool.count_cached(request.prefix), most)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Give the request the blocks for `tokens` more tokens, if they are free."""
        needed = self._blocks_for(request.computed + tokens) - request.blocks
        if needed > self._pool.free:
            return False
        self._pool.allocate(needed)
        request.blocks += needed
        return True

    def _publish(self, request: Request) -> None:
        """Cache the blocks that are computed and have a name, in order."""
        if not self.config.prefix_caching:
            return
        complete = min(request.computed // self.config.block_size, len(request.prefix))
        if request.cached_blocks >= complete:
            return
        for name in request.prefix[request.cached_blocks : complete]:
            if not self._pool.publish(name):
                break
            request.cached_blocks += 1

    def _release(self, request: Request) -> None:
        self._pool.release(request.prefix[: request.cached_blocks], request.blocks - request.cached_blocks)
        request.blocks = request.cached_blocks = 0

    def _add_to_batch(self, request: Request, tokens: int, step: StepReport) -> None:
        if tokens == 1 and request.generated:
            step.decodes += 1
        else:
            step.prefill_tokens += tokens
        self._batch.append((request, tokens))

    def _add_token(self, request: Request, step: StepReport) -> None:
        if request.token_at is None:
            request.first_token_at = step.ends_at
            self.counters.prompt_tokens += request.prompt_tokens
        else:
            request.token_gap = step.ends_at - request.token_at
        request.token_at = step.ends_at
        request.generated += 1
        step.advanced.append(request)
        if request.finished:
            self._release(request)
            step.finished.append(request)
