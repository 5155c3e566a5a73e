"""The law of join-shortest-queue: the node with the fewest requests under way, ties at random.

The textbook's law (Winston, Optimality of the Shortest Line Discipline, 1977), with what a router knows: its own
requests. nginx's least_conn differs in its ties, which go round robin. limit-jsq (limits.py) knows all requests of a
node and its speed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.virtual.peers.router import Router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Call


class ShortestQueue(Router):
    """Counts requests, whatever their size."""

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose the node with the fewest requests."""
        del call, cached
        return self.best(usable, lambda node: self.requests[node])
