"""The records of a simulated engine: requests, counters and steps.

Times are seconds on the caller's clock, sizes are tokens or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, eq=False)
class Request:
    """A request and its progress. The caller sets the first four fields, the engine the others.

    Attributes:
        request_id: any name, for error messages.
        prompt_tokens: >= 1.
        max_tokens: how many tokens it generates, >= 1; nothing ends it earlier.
        prefix: for each whole block of the prompt a hash of all tokens up to its end, as far as it may be shared; then
            those of its answer, if later prompts may have them.
        generated: tokens generated so far.
        computed: tokens whose keys and values are in the cache now.
        blocks: cache blocks held now.
        cached_blocks: how many of them, from the first on, other requests can share.
        preemptions: how often it lost its blocks and started again.
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
    cached_blocks: int = 0
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
    """Totals of an engine since its start.

    Attributes:
        prompt_tokens: counted once per request, with its first output token; cached ones count too.
        generation_tokens: output tokens.
        preemptions: requests that lost their blocks.
        queried_tokens, hit_tokens: prompt tokens looked up in the prefix cache, and found there.
        steps: steps that have ended.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    steps: int = 0


@dataclass(slots=True)
class StepReport:
    """One step.

    Attributes:
        started_at, ends_at: seconds.
        prefill_tokens: prompt tokens (or recomputed ones) computed.
        decodes: sequences that only continued.
        advanced: requests that gained exactly one token.
        finished: those of `advanced` that are now complete and gone from the engine.
        preempted: requests that went back to the waiting queue when the step was scheduled.
    """

    started_at: float
    ends_at: float = 0.0
    prefill_tokens: int = 0
    decodes: int = 0
    advanced: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
