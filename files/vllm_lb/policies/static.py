# SPDX-License-Identifier: Apache-2.0
"""The policy `static`: each node has its share of the configured capacities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.causes import NodeCause
from vllm_lb.policies import Verdict
from vllm_lb.settings import MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.policies import Moment, Observation
    from vllm_lb.settings import Node, Policies, Pool


def weigh(pool: Pool, _policies: Policies, seen: Mapping[str, Observation], _moment: Moment) -> dict[str, Verdict]:
    """Weigh each node by its configured capacity; the largest of the pool gets 100."""
    return {
        node.name: Verdict(weight_of(pool, node), NodeCause.CONFIGURED_CAPACITY, f"capacity {node.capacity:g}")
        for node in pool.nodes
        if node.name in seen
    }


def lowest_weight(pool: Pool, node: Node, _policies: Policies) -> int:
    """Return the node's one weight."""
    return weight_of(pool, node)


def weight_of(pool: Pool, node: Node) -> int:
    """Return a node's share of the pool's largest capacity, from 1 to 100."""
    return max(1, round(MAX_WEIGHT * node.capacity / max(each.capacity for each in pool.nodes)))
