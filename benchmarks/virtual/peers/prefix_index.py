"""What a router remembers of prompts: which node was sent which blocks of tokens.

It is what llm-d calls approximate: it notes what was sent, not what a node has kept. Each node's least recently noted
blocks are forgotten first, as llm-d-router's approx-prefix-cache-producer and smg's trees do it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

NOBODY: OrderedDict[int, float] = OrderedDict()


class PrefixIndex:
    """The blocks of prompts that each node was sent."""

    def __init__(self, capacities: Sequence[int]) -> None:
        """Start empty; the capacities say how many blocks are remembered of each node."""
        self.capacities = capacities
        self._nodes: dict[int, OrderedDict[int, float]] = {}  # by block, with times, the last noted one last
        self._blocks: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]  # by node, likewise

    def matched(self, prefix: Sequence[int]) -> dict[int, int]:
        """Return by node how many blocks from the first on it was sent; a node without the first block is left out."""
        found: dict[int, int] = {}
        alive: AbstractSet[int] | None = None
        for count, block in enumerate(prefix, 1):
            holders = self._nodes.get(block, NOBODY).keys()
            alive = holders if alive is None else alive & holders
            if not alive:
                break
            found.update(dict.fromkeys(alive, count))
        return found

    def deepest(self, prefix: Sequence[int], since: float) -> tuple[int, int | None]:
        """Return how many blocks from the first on any node was sent, and which node was sent the last of them last.

        `since`: seconds; what was sent before does not count.
        """
        count, node = 0, None
        for block in prefix:
            holders = self._nodes.get(block)
            if not holders or holders[next(reversed(holders))] < since:
                break
            count, node = count + 1, next(reversed(holders))
        return count, node

    def note(self, prefix: Sequence[int], node: int, now: float) -> None:
        """Note that a node is sent a prompt; `now` in seconds."""
        blocks = self._blocks[node]
        for block in prefix:
            blocks[block] = None
            blocks.move_to_end(block)
            holders = self._nodes.setdefault(block, OrderedDict())
            holders[node] = now
            holders.move_to_end(node)
        while len(blocks) > self.capacities[node]:
            self._forget(blocks.popitem(last=False)[0], node)

    def _forget(self, block: int, node: int) -> None:
        holders = self._nodes[block]
        del holders[node]
        if not holders:
            del self._nodes[block]
