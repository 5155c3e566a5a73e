"""The blocks of a KV cache: which are free, and which hold a prompt's beginning that another prompt can share.

As in vLLM: a block is known by the hash of all tokens up to its end, requests that begin alike hold the same
blocks, and blocks nobody holds keep their content until the room is needed, the longest unused first.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BlockPool:
    """A number of blocks.

    Attributes:
        free: blocks nobody holds, those with content that could be shared included.
    """

    def __init__(self, size: int) -> None:
        """Start with `size` empty blocks."""
        self.free = size
        self._holders: dict[int, int] = {}  # how many requests hold the block of a hash
        self._unheld: dict[int, None] = {}  # the hashes of those nobody holds, longest unused first

    def known(self, hashes: Sequence[int]) -> int:
        """Return how many of the leading hashes are in the cache."""
        return sum(1 for _ in itertools.takewhile(lambda h: h in self._holders or h in self._unheld, hashes))

    def room_with(self, hashes: Sequence[int]) -> int:
        """Return how many blocks would be free once these, which are known, are held."""
        return self.free - sum(1 for each in hashes if each in self._unheld)

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold blocks that are known."""
        for each in hashes:
            if each in self._unheld:
                del self._unheld[each]
                self.free -= 1
            self._holders[each] = self._holders.get(each, 0) + 1

    def take(self, blocks: int) -> None:
        """Take blocks that are free, forgetting what they held."""
        self.free -= blocks
        while len(self._unheld) > self.free:
            del self._unheld[next(iter(self._unheld))]

    def publish(self, each: int) -> bool:
        """Make a block that its only holder has filled known by its hash; False if another block is."""
        if each in self._holders or each in self._unheld:
            return False
        self._holders[each] = 1
        return True

    def give_back(self, hashes: Sequence[int], others: int) -> None:
        """Let go of blocks known by their hashes, and of others. A prompt's end is forgotten before its beginning."""
        self.free += others
        for each in reversed(hashes):
            self._holders[each] -= 1
            if not self._holders[each]:
                del self._holders[each]
                self._unheld[each] = None
                self.free += 1
