"""The law of LMetric: the least product of new prefill tokens and batch size.

Source: Zhang and others, LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling
(https://arxiv.org/abs/2603.15202). Its abstract names the two factors: the new prefill tokens if the request is sent
to the node, and the node's current batch size. `lmetric` reads them as the proposed scorer of llm-d does
(https://github.com/llm-d/llm-d-router/pull/2351): uncached tokens of the request, times requests in flight plus one.

`lmetric-queued` also counts the uncached tokens that the node has not begun, as some reimplementations do. We could not
confirm which of the two the paper's own program does.

Left out: the paper's detection of rare states in which a product misleads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.virtual.peers.router import PrefixRouter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Call


class Lmetric(PrefixRouter):
    """Multiplies, so that no weight between cache and load needs to be chosen."""

    def __init__(self, name: str, *, queued: bool = False) -> None:
        """Take the name, and whether prompts that wait at a node count as new prefill tokens too."""
        super().__init__(name)
        self.queued = queued

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose the node with the least product."""

        def cost(node: int) -> float:
            tokens = self.uncached(call, cached, node) + (self.tokens[node] if self.queued else 0)
            return tokens * (self.requests[node] + 1)

        return self.best(usable, cost)
