"""The law of llm-d: sticky until saturated, by uncached tokens in flight.

Source: https://github.com/llm-d/llm-d-router at commit ebab6879 of 2026-08-22: the plugins inflight-load-producer,
prefix-cache-affinity-filter, token-load-scorer and max-score-picker, with the defaults of their documentation.

- A node's load is the uncached prompt tokens of its requests. It falls with a request's first chunk.
- Nodes that have at least 0.8 of the prompt's blocks are warm. Only these are candidates, unless the best of them lags
  behind the best other node by more than 18 s: load over the throughput of an unloaded node.
- Among the candidates the one with the least load, the request's own uncached tokens included, gets the request.
- The producer of prefix data hashes blocks of 64 tokens, of at most 131,072 tokens of a prompt, and remembers of each
  node as many as its metrics say that its KV cache holds.

llm-d's throughput (15,928 tokens a second) is of one GPU, and its documentation says to set it: here it is that of the
first node's engine, computing one full chunk. Left out: exploration (off by default), and the cap of the score at
4,194,304 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.virtual.peers.router import PrefixRouter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Call
    from simulator.engine_config import EngineConfig

AFFINITY_THRESHOLD = 0.8
MAX_LAG_SECONDS = 18.0
MAX_PREFIX_TOKENS = 131_072


def peak_prefill_tokens_per_second(config: EngineConfig) -> float:
    """Return how fast an unloaded engine computes one chunk of its whole budget."""
    tokens = config.max_num_batched_tokens
    return tokens / (config.step_seconds + tokens * config.prefill_token_seconds)


class LlmD(PrefixRouter):
    """Filters by warmth, then compares loads."""

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose among the warm nodes, or among all."""
        most = max(1, min(call.prompt_tokens, MAX_PREFIX_TOKENS) // self.block_tokens) * self.block_tokens
        warm = [node for node in usable if cached.get(node, 0) >= AFFINITY_THRESHOLD * most]
        if warm and self.lag(warm, usable) > MAX_LAG_SECONDS:
            warm = []
        return self.best(warm or usable, lambda node: self.tokens[node] + self.uncached(call, cached, node))

    def cached(self, call: Call) -> dict[int, int]:
        """Return by node how many tokens of a prompt it was sent before, as far as llm-d looks."""
        matched = self.prefixes.matched(call.prefix(self.block_tokens)[: MAX_PREFIX_TOKENS // self.block_tokens])
        return {node: blocks * self.block_tokens for node, blocks in matched.items()}

    def lag(self, warm: Sequence[int], usable: Sequence[int]) -> float:
        """Return by how many seconds the best warm node is behind the best other one; 0 if there is no other."""
        others = [self.tokens[node] for node in usable if node not in warm]
        if not others:
            return 0.0
        tokens = min(self.tokens[node] for node in warm) - min(others)
        return tokens / peak_prefill_tokens_per_second(self.nodes[0].engine.config)
