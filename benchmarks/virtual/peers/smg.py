"""The laws of smg, the Shepherd Model Gateway, which was sglang's router: cache_aware and least_load, over HTTP.

Source: https://github.com/lightseekorg/smg at commit 73da68ca of 2026-08-07, version 1.9.0 of the PyPI package:
model_gateway/src/policies/{cache_aware,least_load}.rs, model_gateway/src/worker/monitor.rs, and the defaults of
bindings/python/src/smg/router_args.py. (The newest package, 1.13.0, has no published source that we could read.)

Left out: its queue and its limits of concurrent requests (off by default), and several gateways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import workload
from benchmarks.virtual.peers.router import PrefixRouter, Router

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call

CACHE_THRESHOLD = 0.3
BALANCE_REQUESTS, BALANCE_RATIO = 64, 1.5
TREE_CHARACTERS = 2**26  # of each worker

KV_WEIGHT_SECONDS = 0.15
MEAN_PREFILL_TOKENS = 1024
DEFAULT_TOKENS_PER_SECOND = 2000.0
MOST_KV_USAGE = 0.999


class SmgCacheAware(PrefixRouter):
    """Follows the longest prefix while requests are balanced.

    - Unbalanced (the most requests exceed the fewest by more than 64, and 1.5 times them): the fewest requests.
    - Else, if some worker was sent more than 0.3 of the prompt: the worker that was sent that beginning last.
    - Else the fewest requests.

    Of several with the fewest, the one that was sent the fewest in all gets the request. smg compares characters, this
    model blocks of 16 tokens.

    Attributes:
        processed: requests sent so far, by node.
    """

    block_tokens = 16

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start with nothing processed."""
        super().begin(nodes, scenario, chance)
        self.processed = [0] * len(nodes)

    def capacity(self, node: VirtualNode) -> int:
        """Return how many blocks a tree holds of a worker, however large that worker's cache is."""
        del node
        return TREE_CHARACTERS // workload.CHARACTERS_PER_TOKEN // self.block_tokens

    def cached(self, call: Call) -> dict[int, int]:
        """Return the worker that was sent the longest beginning of the prompt last, with its tokens."""
        blocks, node = self.prefixes.deepest(call.prefix(self.block_tokens))
        return {} if node is None else {node: blocks * self.block_tokens}

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose by prefix or by requests."""
        fewest = min(usable, key=lambda node: (self.requests[node], self.processed[node], node))
        low, high = self.requests[fewest], max(self.requests[node] for node in usable)
        is_balanced = high - low <= BALANCE_REQUESTS or high <= low * BALANCE_RATIO
        for node, tokens in cached.items():
            if is_balanced and node in usable and tokens > CACHE_THRESHOLD * call.prompt_tokens:
                return node
        return fewest

    def note(self, call: Call, node: int) -> None:
        """Add the prompt to the worker's tree."""
        super().note(call, node)
        self.processed[node] += 1


class SmgLeastLoad(Router):
    """Compares the time to drain, plus a barrier that grows with the use of the KV cache.

    score = requests sent since the last poll x 1,024 tokens / 2,000 tokens per second + 0.15 s x k / (1 - k)

    k is the KV usage that vLLM's /metrics had at the last poll, every 10 s. Over HTTP smg knows no prompt's tokens,
    and vLLM tells neither tokens that wait nor a rate, so the defaults stand for both. A worker that was never polled
    has its requests under way in place of those since a poll, and no barrier; if none was, the fewest requests decide.
    The first of several gets the request.

    Attributes:
        since: requests sent since the last poll, by node.
        usage: k by node; None: never polled.
    """

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start without a poll."""
        super().begin(nodes, scenario, chance)
        self.since = [0] * len(nodes)
        self.usage: list[float | None] = [None] * len(nodes)

    def tick(self, now: float) -> None:
        """Poll all workers; one whose metrics cannot be read keeps what it had."""
        del now
        for node in self.nodes:
            reading = node.sample().reading
            if reading is not None:
                self.usage[node.index], self.since[node.index] = reading.kv_cache_usage, 0

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose the worker with the lowest score."""
        del call, cached
        is_dark = all(self.usage[node] is None for node in usable)
        return min(usable, key=lambda node: self.requests[node] if is_dark else self.score(node))

    def score(self, node: int) -> float:
        """Return a worker's score in seconds."""
        usage = self.usage[node]
        requests = self.requests[node] if usage is None else self.since[node]
        k = min(usage or 0.0, MOST_KV_USAGE)
        return requests * MEAN_PREFILL_TOKENS / DEFAULT_TOKENS_PER_SECOND + KV_WEIGHT_SECONDS * k / (1 - k)

    def note(self, call: Call, node: int) -> None:
        """Count the request since the last poll."""
        del call
        self.since[node] += 1
