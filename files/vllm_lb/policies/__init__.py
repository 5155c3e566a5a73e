# SPDX-License-Identifier: Apache-2.0
"""The policies that weigh the nodes of a pool.

A policy is a module with two functions:

    weigh(pool, policies, seen, moment) -> {name: Verdict}     the weights, 1 to 100, of the nodes that could be read
    lowest_weight(pool, node, policies) -> int                 the weight of a node without a good reading

`seen` has an Observation of each node that could be read and has statistics, by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vllm_lb.data import data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.causes import NodeCause
    from vllm_lb.memory import Learned, NodeMemory
    from vllm_lb.observation import Reading
    from vllm_lb.settings import Node, Policies, Pool


SHORTEST_INTERVAL = 0.8  # of interval_seconds: the timer and slow nodes shift ticks a little


@data()
class Moment:
    """What is true of a tick as a whole."""

    now: float  # seconds of the monotonic clock
    applied: bool = True  # what was decided last is live, so what the nodes show can be its effect
    slow_start: bool = True  # the weights have to do it; False: nginx's Lua does
    slow_start_seconds: float = 0.0  # how long the Lua takes for it
    interval_seconds: float = 0.0  # between two ticks of the timer; an operator or a playbook may run more of them

    def is_too_soon(self, since: float | None) -> bool:
        """Tell whether less than an interval has passed since a time. Further ticks must not make a slow start shorter.

        The monotonic clock starts again at boot: a time in the future is from before it.
        """
        return since is not None and 0 <= self.now - since < SHORTEST_INTERVAL * self.interval_seconds


@data()
class Observation:
    """What a policy sees of a node that could be read."""

    reading: Reading
    preemptions_delta: int | None  # new preemptions since the reading before; None: the node does not say
    was: NodeMemory


@data()
class Verdict:
    """What a policy says of a node, and what it wants to remember of it."""

    weight: int
    cause: NodeCause
    reason: str
    learned: Learned | None = None


class Policy(Protocol):
    """What each module of this package offers."""

    def weigh(
        self, pool: Pool, policies: Policies, seen: Mapping[str, Observation], moment: Moment
    ) -> dict[str, Verdict]:
        """Weigh the nodes of a pool."""

    def lowest_weight(self, pool: Pool, node: Node, policies: Policies) -> int:
        """Return the least weight of a node in rotation: enough requests to show that it is well again."""
