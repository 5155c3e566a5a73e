# SPDX-License-Identifier: Apache-2.0
"""What one scrape of one node brought: a reading, or why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.data import data

if TYPE_CHECKING:
    from vllm_lb.causes import ScrapeCause


@data()
class Reading:
    """What a node reports of itself, over all its engines.

    None: the node does not say, or its value is impossible. A node without statistics has none of the first four.
    """

    kv_cache_usage: float | None  # ratio 0..1, of the fullest engine
    waiting: int | None  # requests queued, summed
    running: int | None  # requests in a batch, summed
    preemptions: int | None  # since the node started, summed
    engines: int  # 1 to MAX_ENGINES
    awake: bool
    prompt_tokens: int | None = None  # computed since the node started, summed; old versions of vLLM do not say
    generation_tokens: int | None = None  # generated since then, summed
    finished: int | None = None  # requests that have ended since then, summed
    token_gaps: int | None = None  # how many times since then a token of a request followed another one
    token_gap_seconds: float | None = None  # the times from the one to the other, summed
    kv_cache_tokens: int | None = None  # that the KV caches hold, > 0, summed; old versions of vLLM do not say

    @property
    def requests(self) -> int:
        """All requests of the node that it tells of: in a batch or queued."""
        return (self.running or 0) + (self.waiting or 0)

    @property
    def has_statistics(self) -> bool:
        """Tell whether the node says anything of its load."""
        return any(each is not None for each in (self.kv_cache_usage, self.waiting, self.running, self.preemptions))

    @property
    def fingerprint(self) -> str:
        """All that changes while an engine works, in one line."""
        counters = f"{self.preemptions} {self.prompt_tokens} {self.generation_tokens}"
        return f"{self.kv_cache_usage} {self.waiting} {self.running} {counters}"


@data()
class Sample:
    """The result of one scrape.

    If a sample has a reading and an error, a part of the reading is missing. The error says which part, and why.
    """

    address: str | None  # the IP address to publish; None if the node's name never resolved
    seconds: float  # how long the scrape took
    reading: Reading | None = None
    error: str | None = None  # why there is no reading, or only a part of one; for people
    cause: ScrapeCause | None = None  # the same, for programs
    answered: bool = True  # False: no HTTP answer at all, which counts towards health.fall
    unresolved: str | None = None  # why the node's name did not resolve, where its last address was used instead
