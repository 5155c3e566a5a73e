# SPDX-License-Identifier: Apache-2.0
"""readings.json: what the balancer `work` in nginx is told of the nodes' KV caches, at each tick. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_lb.addresses import bracketed
from vllm_lb.text import seconds_of

if TYPE_CHECKING:
    from vllm_lb.plan import NodePlan, Plan
    from vllm_lb.settings import Config


def readings(config: Config, plan: Plan) -> str:
    """Return the file. Its nodes have the names that nginx has for them: host:port, or [host]:port for IPv6."""
    nodes = {}
    for planned, pool in zip(plan.pools, config.pools, strict=True):
        for at, node in zip(planned.nodes, pool.nodes, strict=True):
            if at.address and (known := kv_cache_of(at)):
                nodes[f"{bracketed(at.address)}:{node.port}"] = known
    content = {
        "version": 1,
        "decided_at_seconds": seconds_of(plan.decided_at),
        "interval_seconds": config.interval_seconds,
        "nodes": nodes,
    }
    return json.dumps(content) + "\n"


def kv_cache_of(node: NodePlan) -> dict[str, float]:
    """Return what is known of a node's KV cache.

    `kv_tokens` is how many tokens it holds, `kv_usage` how full it is (0 to 1). Only the usage of a node that is up is
    believed: that of a frozen node may be any age.
    """
    usage = None if node.state != "up" or node.kv_cache_usage is None else round(node.kv_cache_usage, 4)
    known = {"kv_tokens": node.kv_cache_tokens, "kv_usage": usage}
    return {name: value for name, value in known.items() if value is not None}
