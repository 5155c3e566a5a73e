"""The names of a prompt's blocks, as runs of consecutive numbers: 160,000 tokens take a few hundred bytes."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class BlockNames(Sequence[int]):
    """A sequence of names, made of ranges one after the other. Its parts are made on demand and never kept.

    A name stands for all tokens of the prompt up to the end of its block. So two sequences are equal up to some block,
    and differ in every later one.
    """

    __slots__ = ("_ends", "_length", "_runs")

    def __init__(self, runs: Iterable[range]) -> None:
        """Take ranges with a step of 1; empty ones are left out."""
        self._runs = tuple(run for run in runs if run)
        self._ends = list(itertools.accumulate(map(len, self._runs)))
        self._length = self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """Count the names."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """Yield the names in order."""
        return itertools.chain.from_iterable(self._runs)

    def __reversed__(self) -> Iterator[int]:
        """Yield the names, the last one first."""
        return itertools.chain.from_iterable(map(reversed, reversed(self._runs)))

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> BlockNames: ...

    def __getitem__(self, index: int | slice) -> int | BlockNames:
        """Return a name, or a part whose step is 1.

        Raises:
            IndexError: there is no such name.
            ValueError: the step of a part is not 1.
        """
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            if step != 1:
                raise ValueError("a part of block names has the step 1")
            begins = (end_of_run - len(run) for run, end_of_run in zip(self._runs, self._ends, strict=True))
            return BlockNames(
                run[max(0, first - begin) : max(0, end - begin)] for run, begin in zip(self._runs, begins, strict=True)
            )
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError("block name index out of range")
        run = bisect_right(self._ends, index)
        return self._runs[run][index - self._ends[run]]

    def __eq__(self, other: object) -> bool:
        """Tell whether another one has the same names."""
        if not isinstance(other, BlockNames):
            return NotImplemented
        return len(self) == len(other) == self.common(other)

    def __hash__(self) -> int:
        """Return a hash of length and last name, which tells the earlier ones."""
        return hash((len(self), self[-1] if self else None))

    def common(self, other: Sequence[int]) -> int:
        """Return how many names from the first on are equal to those of another prompt."""
        if not isinstance(other, BlockNames):
            other = BlockNames(range(name, name + 1) for name in other)
        count, ours, theirs = 0, iter(self._runs), iter(other._runs)
        run, other_run = next(ours, None), next(theirs, None)
        while run and other_run and run.start == other_run.start:
            equal = min(len(run), len(other_run))
            count += equal
            run, other_run = run[equal:] or next(ours, None), other_run[equal:] or next(theirs, None)
        return count
