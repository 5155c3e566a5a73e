"""The blocks of a KV cache: which are free, and which hold the prefix of a prompt that other prompts can share.

As in vLLM (https://docs.vllm.ai/en/latest/design/prefix_caching/), the name of a block is a hash of all tokens up to
its end, and prompts with equal prefixes hold the same blocks. A block that no request holds keeps its content until
the block is needed. Blocks without a name are used first; then the block goes that was freed first, and a request frees
its last block first. So a block is never in the cache without all earlier ones of its prompt, and a search can halve.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class BlockPool:
    """A fixed number of blocks.

    Attributes:
        free: how many blocks no request holds, cached ones included.
    """

    def __init__(self, size: int) -> None:
        """Start with `size` empty blocks."""
        self.free = size
        self._holders: dict[int, int] = {}  # by name, how many requests hold the block
        # By name, cached blocks that none holds, in the order in which they were freed. Its first key is found in
        # constant time, that of a dict only after all that were deleted before it.
        self._unheld: OrderedDict[int, None] = OrderedDict()

    def copy(self) -> BlockPool:
        """Return a pool in the same state."""
        twin = BlockPool(self.free)
        twin._holders, twin._unheld = self._holders.copy(), self._unheld.copy()
        return twin

    def count_cached(self, names: Sequence[int]) -> int:
        """Return how many names from the first on are in the cache."""
        return _count_first(names, lambda name: name in self._holders or name in self._unheld)

    def room_with(self, names: Sequence[int]) -> int:
        """Return how many blocks would be free if a request held these cached ones."""
        held = _count_first(names, self._holders.__contains__)
        return self.free - (len(names) - held)

    def hold(self, names: Sequence[int]) -> None:
        """Hold cached blocks for one more request."""
        holders, unheld = self._holders, self._unheld
        for name in names:
            if name in holders:
                holders[name] += 1
            else:
                del unheld[name]
                holders[name] = 1
                self.free -= 1

    def allocate(self, blocks: int) -> None:
        """Hold free blocks. Their former content is lost."""
        self.free -= blocks
        while len(self._unheld) > self.free:
            self._unheld.popitem(last=False)

    def publish(self, name: int) -> bool:
        """Cache a block that its only holder has filled under its name; False if another block has that name."""
        if name in self._holders or name in self._unheld:
            return False
        self._holders[name] = 1
        return True

    def release(self, names: Sequence[int], others: int) -> None:
        """Release the cached blocks of a request, and `others` that are not cached."""
        holders, unheld = self._holders, self._unheld
        self.free += others
        for name in reversed(names):
            if holders[name] > 1:
                holders[name] -= 1
            else:
                del holders[name]
                unheld[name] = None
                self.free += 1


def _count_first(names: Sequence[int], passes: Callable[[int], bool]) -> int:
    """Return how many names from the first on pass, where none passes after one that does not."""
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if passes(names[middle]):
            low = middle + 1
        else:
            high = middle
    return low
