# SPDX-License-Identifier: Apache-2.0
"""The policy `stepped`: a published ladder of weights.

The usage of a node's KV cache picks a level. Each further sign of load moves it one level down, at most to the last:
requests that wait, new preemptions, too many running. What a node does not say is no sign. Every node is weighed alone.
The policy reacts to load that its own weights caused, and swings near saturation: docs/decisions.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.causes import NodeCause
from vllm_lb.policies import Verdict
from vllm_lb.text import two_digits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.policies import Moment, Observation
    from vllm_lb.settings import Node, Policies, Pool, Stepped


def weigh(pool: Pool, policies: Policies, seen: Mapping[str, Observation], _moment: Moment) -> dict[str, Verdict]:
    """Weigh each node by the ladder."""
    return {node.name: verdict(seen[node.name], policies.stepped) for node in pool.nodes if node.name in seen}


def lowest_weight(_pool: Pool, _node: Node, policies: Policies) -> int:
    """Return the last level."""
    return policies.stepped.levels[-1]


def verdict(seen: Observation, rules: Stepped) -> Verdict:
    """Return the ladder's weight for one node."""
    reading, kv = seen.reading, seen.reading.kv_cache_usage
    waiting, running = reading.waiting or 0, reading.running or 0
    steps = sorted(rules.kv_cache, key=lambda step: step.at_least, reverse=True)
    reached = next((step for step in steps if kv is not None and kv >= step.at_least), None)
    limit = f" >= {reached.at_least:g}" if reached else f" < {steps[-1].at_least:g}" if steps else ""
    downgrades = []
    if waiting > rules.max_waiting:
        downgrades.append(f"waiting {waiting} > {rules.max_waiting}")
    if rules.downgrade_on_preemption and seen.preemptions_delta:
        downgrades.append(f"{seen.preemptions_delta} new preemptions")
    if running > rules.max_running * reading.engines:
        downgrades.append(f"running {running / reading.engines:g} > {rules.max_running} per engine")
    level = rules.levels.index(reached.weight if reached else rules.levels[0]) + len(downgrades)
    return Verdict(
        rules.levels[min(level, len(rules.levels) - 1)],
        NodeCause.DOWNGRADED if downgrades else NodeCause.KV_LEVEL,
        ", ".join(["kv unknown" if kv is None else f"kv {two_digits(kv)}{limit}", *downgrades]),
    )
