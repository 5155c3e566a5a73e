"""One simulated inference engine: continuous batching over a bounded KV cache, in steps.

Pure and deterministic: no clock, no randomness, no I/O. The caller owns the time, real or virtual:

    engine.submit(request, now)          whenever a request arrives
    ends_at = engine.begin(now)          schedules one step; None when there is nothing to do
    report = engine.finish()             when the caller's clock has reached ends_at; then begin() again

Times are seconds on the caller's clock, sizes are tokens or blocks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from simulator.block_pool import BlockPool

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Size and speed of an engine; the defaults resemble an 8-billion-parameter model on one 48 GB GPU.

    Attributes:
        max_num_batched_tokens: token budget of one step, >= 1.
        max_num_seqs: most requests running at once, >= 1.
        num_blocks: size of the KV cache in blocks, >= 1.
        block_size: tokens per block, >= 1.
        max_model_len: most tokens of one request, prompt and output together, >= 2.
        step_seconds: cost of any step, > 0.
        prefill_token_seconds: added cost per prompt token of a step, >= 0.
        decode_sequence_seconds: added cost per sequence of a step that only continues, >= 0.
        prefix_caching: whether requests that begin alike share blocks and skip what is computed already.
    """

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    num_blocks: int = 8192
    block_size: int = 16
    max_model_len: int = 32768
    step_seconds: float = 0.020
    prefill_token_seconds: float = 0.0001
    decode_sequence_seconds: float = 0.0002
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes an engine cannot have.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        lowest = {"max_model_len": 2, "prefill_token_seconds": 0, "decode_sequence_seconds": 0, "prefix_caching": 0}
        for option in fields(self):
            value, least = getattr(self, option.name), lowest.get(option.name, 1)
            if option.name == "step_seconds":
                if value <= 0:
                    raise ValueError(f"step_seconds: {value}: must be above 0")
            elif value < least:
                raise ValueError(f"{option.name}: {value}: must be at least {least}")

    @property
    def longest_request(self) -> int:
        """Most prompt and output tokens one request may have: it must fit the empty cache.

        The last output token is never fed back, so it needs no room.
        """
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)


@dataclass(slots=True, eq=False)
class Request:
    """A request and how far it has come. The caller sets the first four fields, the engine the rest.

    Attributes:
        request_id: the caller's name for it.
        prompt_tokens: >= 1.
        max_tokens: how many tokens it generates, >= 1; nothing ends it earlier.
        prefix: for each whole block of the prompt a hash of all tokens up to its end, as far as it may be shared.
        generated: tokens generated so far.
        computed: tokens whose keys and values are in the cache now.
        blocks: cache blocks held now.
        known_blocks: those of them, the first ones, that are known by their hashes.
        preemptions: how often it lost its blocks and had to start over.
        arrived_at, scheduled_at, first_token_at, token_at: seconds; None until it happened.
        token_gap: seconds between its last two tokens; 0 for the first.
        aborted: the client went away.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    prefix: Sequence[int] = ()
    generated: int = 0
    computed: int = 0
    blocks: int = 0
    known_blocks: int = 0
    preemptions: int = 0
    arrived_at: float = 0.0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    token_at: float | None = None
    token_gap: float = 0.0
    aborted: bool = False

    @property
    def finished(self) -> bool:
        """Whether all its tokens are generated."""
        return self.generated == self.max_tokens


@dataclass(slots=True)
class Counters:
    """What an engine has done since its start; each only grows.

    Prompt tokens count once, when the prompt's first output token appears: neither chunks nor
    recomputation after a preemption count again, cached ones count too. Queried and hit tokens are those
    looked up in the prefix cache, and found.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    steps: int = 0


@dataclass(slots=True)
class StepReport:
    """One step: when it ran and what it did.

    Attributes:
        started_at, ends_at: seconds.
        prefill_tokens: prompt tokens (or recomputed ones) computed.
        decodes: sequences that only continued.
        advanced: requests that gained exactly one token.
        finished: those of `advanced` that are now complete and gone from the engine.
        preempted: requests thrown back to the waiting queue when the step was scheduled.
    """

    started_at: float
    ends_at: float = 0.0
    prefill_tokens: int = 0
    decodes: int = 0
    advanced: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)


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

    def submit(self, request: Request, now: float) -> None:
        """Put a new request at the end of the waiting queue.

        Raises:
            ValueError: it has no tokens, or is longer than the engine can ever hold.
        """
        if request.prompt_tokens < 1 or request.max_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        total, longest = request.prompt_tokens + request.max_tokens, self.config.longest_request
        if total > longest:
            raise ValueError(
                f"{request.prompt_tokens} prompt tokens and {request.max_tokens} output tokens make {total}, "
                f"above this model's maximum context length of {longest} tokens"
            )
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
        if not step.preempted:  # a request just thrown out would only come straight back
            self._schedule_waiting(step, budget)
        if not self._batch:
            return None
        config = self.config
        cost = (
            config.step_seconds
            + step.prefill_tokens * config.prefill_token_seconds
            + step.decodes * config.decode_sequence_seconds
        )
        step.ends_at = now + cost / self.speed
        self._step = step
        return step.ends_at

    def finish(self) -> StepReport:
        """End the step under way: hand out its tokens and let go of complete requests.

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
            found = request.prefix[: self._known_blocks(request)]
            tokens = min(request.prompt_tokens + request.generated - len(found) * self.config.block_size, budget)
            if self._blocks_for(tokens) > self._pool.room_with(found):
                break
            self._pool.hold(found)
            request.blocks = request.known_blocks = len(found)
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
        """Reserve blocks, preempting from the youngest; False if the request itself had to go.

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

    def _known_blocks(self, request: Request) -> int:
        """Return how many blocks a request finds in the prefix cache; its last token is always computed."""
        if not self.config.prefix_caching:
            return 0
        return min(self._pool.known(request.prefix), (request.prompt_tokens - 1) // self.config.block_size)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Give the request the blocks for `tokens` more tokens, if they are free."""
        needed = self._blocks_for(request.computed + tokens) - request.blocks
        if needed > self._pool.free:
            return False
        self._pool.take(needed)
        request.blocks += needed
        return True

    def _publish(self, request: Request) -> None:
        """Let others share the blocks of the prompt that are computed, in order."""
        if not self.config.prefix_caching:
            return
        complete = min(request.computed // self.config.block_size, len(request.prefix))
        while request.known_blocks < complete and self._pool.publish(request.prefix[request.known_blocks]):
            request.known_blocks += 1

    def _release(self, request: Request) -> None:
        self._pool.give_back(request.prefix[: request.known_blocks], request.blocks - request.known_blocks)
        request.blocks = request.known_blocks = 0

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
