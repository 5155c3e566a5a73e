"""The laws of smg, the Shepherd Model Gateway, formerly sglang's router: cache_aware and least_load, to vLLM over HTTP.

Sources: what smg 1.13.0 (PyPI, October 2026) says of its options and their defaults; and for what options do not say
https://github.com/lightseekorg/smg at commit 73da68ca of 2026-08-07 (1.9.0):
model_gateway/src/policies/{cache_aware,least_load}.rs and model_gateway/src/worker/monitor.rs.

Left out: its queue, its limit of concurrent requests (4,096 and more), warming up workers without a cache, leaving out
workers that make no progress, and several gateways.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING

from benchmarks import workload
from benchmarks.virtual.peers.router import PrefixRouter, Router

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call

OVERLOADED_WAITING, OVERLOADED_KV_USAGE = 8, 0.8

CACHE_THRESHOLD, CACHE_SECONDS = 0.3, 180.0
SPILL_REQUESTS, LEAST_SPILL_REQUESTS, SPILL_RATIO = 64, 4, 1.5
TREE_CHARACTERS = 2**26

KV_WEIGHT_SECONDS = 0.15
MEAN_PREFILL_TOKENS = 1024
DEFAULT_TOKENS_PER_SECOND = 2000.0
MOST_KV_USAGE = 0.999


class Smg(Router):
    """Polls the workers' metrics every 10 s, and leaves out those that were overloaded then.

    A worker is overloaded with at least 8 waiting requests, or with at least 0.8 of its KV cache in use. If all are,
    the one with the fewest requests under way gets the request.

    Attributes:
        usage: KV usage at the last poll by node; None: never polled.
        waiting: requests that waited then.
        processed: requests sent so far.
    """

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start without a poll."""
        super().begin(nodes, scenario, chance)
        self.usage: list[float | None] = [None] * len(nodes)
        self.waiting, self.processed = [0] * len(nodes), [0] * len(nodes)

    def tick(self, now: float) -> None:
        """Poll all workers; one whose metrics cannot be read keeps what it had."""
        del now
        for node in self.nodes:
            reading = node.sample().reading
            if reading is not None:
                self.polled(node.index, reading.kv_cache_usage or 0.0, reading.waiting or 0)

    def polled(self, node: int, usage: float, waiting: int) -> None:
        """Take note of a worker's metrics."""
        self.usage[node], self.waiting[node] = usage, waiting

    def is_overloaded(self, node: int) -> bool:
        """Tell whether a worker is left out while another one is not."""
        return self.waiting[node] >= OVERLOADED_WAITING or (self.usage[node] or 0.0) >= OVERLOADED_KV_USAGE

    def fewest(self, usable: Sequence[int]) -> int:
        """Return the worker with the fewest requests under way; of several, with the fewest in all, then the first."""
        return min(usable, key=lambda node: (self.requests[node], self.processed[node], node))

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose by the policy among those that are not overloaded."""
        free = [node for node in usable if not self.is_overloaded(node)]
        return self.follow(call, cached, free) if free else self.fewest(usable)

    @abc.abstractmethod
    def follow(self, call: Call, cached: dict[int, int], free: Sequence[int]) -> int:
        """Choose by the policy."""

    def note(self, call: Call, node: int) -> None:
        """Count the request."""
        super().note(call, node)
        self.processed[node] += 1


class SmgCacheAware(Smg, PrefixRouter):
    """Follows the longest prefix, unless its worker has many more requests than the others.

    The worker that was sent the longest beginning of the prompt last gets the request if that is more than 0.3 of the
    prompt, and not older than 180 s. It is skipped if its requests exceed the mean of all by a margin, and 1.5 times.
    The margin is 64, but at most two standard deviations of a Poisson distribution with that mean, and at least 4.
    Other requests go to the worker with the fewest. smg compares characters, this model blocks of 16 tokens.
    """

    block_tokens = 16

    def capacity(self, node: VirtualNode) -> int:
        """Return how many blocks a tree holds of a worker, however large that worker's cache is."""
        del node
        return TREE_CHARACTERS // workload.CHARACTERS_PER_TOKEN // self.block_tokens

    def cached(self, call: Call) -> dict[int, int]:
        """Return the worker that was sent the longest beginning of the prompt last, with its tokens."""
        blocks, node = self.prefixes.deepest(call.prefix(self.block_tokens), self.now - CACHE_SECONDS)
        return {} if node is None else {node: blocks * self.block_tokens}

    def follow(self, call: Call, cached: dict[int, int], free: Sequence[int]) -> int:
        """Choose by prefix or by requests."""
        for node, tokens in cached.items():
            if node in free and tokens > CACHE_THRESHOLD * call.prompt_tokens and not self.spills(node):
                return node
        return self.fewest(free)

    def spills(self, node: int) -> bool:
        """Tell whether a worker has so many requests that its prefixes do not count."""
        mean = sum(self.requests) / len(self.requests)
        margin = min(SPILL_REQUESTS, max(LEAST_SPILL_REQUESTS, 2 * math.sqrt(mean)))
        return self.requests[node] > mean + margin and self.requests[node] > SPILL_RATIO * mean


class SmgLeastLoad(Smg):
    """Compares the time to drain, plus a barrier that grows with the use of the KV cache.

    score = requests sent since the last poll x 1,024 tokens / 2,000 tokens per second + 0.15 s x k / (1 - k)

    k is the KV usage at the last poll. Over HTTP smg knows no prompt's tokens, and vLLM tells neither tokens that wait
    nor a rate, so the defaults stand for both. A worker that was never polled has its requests under way in place of
    those since a poll, and no barrier; if none was, the fewest requests decide. The first of several gets the request.

    Attributes:
        since: requests sent since the last poll, by node.
    """

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start without a poll."""
        super().begin(nodes, scenario, chance)
        self.since = [0] * len(nodes)

    def polled(self, node: int, usage: float, waiting: int) -> None:
        """Take note of a worker's metrics."""
        super().polled(node, usage, waiting)
        self.since[node] = 0

    def follow(self, call: Call, cached: dict[int, int], free: Sequence[int]) -> int:
        """Choose the worker with the lowest score."""
        del call, cached
        is_dark = all(self.usage[node] is None for node in free)
        return min(free, key=lambda node: self.requests[node] if is_dark else self.score(node))

    def score(self, node: int) -> float:
        """Return a worker's score in seconds."""
        usage = self.usage[node]
        requests = self.requests[node] if usage is None else self.since[node]
        k = min(usage or 0.0, MOST_KV_USAGE)
        return requests * MEAN_PREFILL_TOKENS / DEFAULT_TOKENS_PER_SECOND + KV_WEIGHT_SECONDS * k / (1 - k)

    def note(self, call: Call, node: int) -> None:
        """Count the request since the last poll too."""
        super().note(call, node)
        self.since[node] += 1
