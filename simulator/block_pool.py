"""The blocks of a KV cache: which are free, and which hold the prefix of a prompt that other prompts can share.

As in vLLM, the name of a block is a hash of all tokens up to its end, and prompts with equal prefixes hold the same
blocks. A block that no request holds keeps its content until the block is needed. The least recently used block goes
first.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BlockPool:
    """A fixed number of blocks.

    Attributes:
        free: how many blocks no request holds, cached ones included.
    """

    def __init__(self, size: int) -> None:
        """Start with `size` empty blocks."""
        self.free = size
        self._holders: dict[int, int] = {}  # by hash, how many requests hold the block
        self._unheld: dict[int, None] = {}  # hashes of cached blocks that none holds, least recently used first

    def copy(self) -> BlockPool:
        """Return a pool in the same state."""
        twin = BlockPool(self.free)
        twin._holders, twin._unheld = self._holders.copy(), self._unheld.copy()
        return twin

    def count_cached(self, hashes: Sequence[int]) -> int:
        """Return how many hashes from the first on are in the cache."""
        return sum(1 for _ in itertools.takewhile(lambda h: h in self._holders or h in self._unheld, hashes))

    def room_with(self, hashes: Sequence[int]) -> int:
        """Return how many blocks would be free if a request held these cached ones."""
        return self.free - sum(1 for each in hashes if each in self._unheld)

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold cached blocks for one more request."""
        for each in hashes:
            if each in self._unheld:
                del self._unheld[each]
                self.free -= 1
            self._holders[each] = self._holders.get(each, 0) + 1

    def allocate(self, blocks: int) -> None:
        """Hold free blocks. Their former content is lost."""
        self.free -= blocks
        while len(self._unheld) > self.free:
            del self._unheld[next(iter(self._unheld))]

    def publish(self, each: int) -> bool:
        """Cache a block that its only holder has filled under its hash; False if another block has that hash."""
        if each in self._holders or each in self._unheld:
            return False
        self._holders[each] = 1
        return True

    def release(self, hashes: Sequence[int], others: int) -> None:
        """Release cached blocks, and `others` more. The last blocks of a prompt are reused first."""
        self.free += others
        for each in reversed(hashes):
            self._holders[each] -= 1
            if not self._holders[each]:
                del self._holders[each]
                self._unheld[each] = None
                self.free += 1
