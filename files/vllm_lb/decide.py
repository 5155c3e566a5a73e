# SPDX-License-Identifier: Apache-2.0
"""The decision of a tick: samples, memory and configuration in, a plan out. Pure: no I/O, no clock."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vllm_lb.causes import HeldCause, NodeCause
from vllm_lb.health import SCRAPES_TO_FORGET, preemptions_delta, remembered
from vllm_lb.judge import Judgement, Levels, judge
from vllm_lb.memory import NodeMemory
from vllm_lb.plan import NodePlan, PoolPlan
from vllm_lb.policies import Moment, Observation, Policy, Verdict, capacity, static, stepped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from vllm_lb.observation import Sample
    from vllm_lb.settings import Config, Node, Policies, Pool

POLICIES: dict[str, Policy] = {"stepped": stepped, "capacity": capacity, "static": static}
DOUBTS = (NodeCause.IMPLAUSIBLE, NodeCause.BOUNDED)  # a reading is not believed as a whole


def decide(
    config: Config,
    samples: Mapping[str, Sample],
    memory: Mapping[str, NodeMemory],
    drained: AbstractSet[str],
    now: float,
    *,
    applied: bool = True,
) -> tuple[tuple[PoolPlan, ...], dict[str, NodeMemory]]:
    """Decide every node's state and weight; return the plan of each pool, and what the next tick remembers.

    `now` is in seconds of the monotonic clock. `applied` says whether the last decision is live. If not, the readings
    do not show its effect.
    """
    is_ours = config.nginx.balancer == "upstream"
    moment = Moment(now, applied, is_ours, config.nginx.slow_start_seconds, config.interval_seconds)
    plans: list[PoolPlan] = []
    after: dict[str, NodeMemory] = {}
    for pool in config.pools:
        plan, memory_of_pool = decide_pool(config, pool, samples, memory, drained, moment)
        plans.append(plan)
        after |= memory_of_pool
    return tuple(plans), after


def decide_pool(
    config: Config,
    pool: Pool,
    samples: Mapping[str, Sample],
    memory: Mapping[str, NodeMemory],
    drained: AbstractSet[str],
    moment: Moment,
) -> tuple[PoolPlan, dict[str, NodeMemory]]:
    """Decide the nodes of one pool; see `decide`."""
    before = {node.name: memory.get(node.name, NodeMemory()) for node in pool.nodes}
    after = {
        node.name: remembered(before[node.name], samples[node.name], config.health, moment.now) for node in pool.nodes
    }
    seen = {
        name: Observation(reading, preemptions_delta(before[name], reading, moment.now), before[name])
        for name in before
        if (reading := samples[name].reading)
    }
    verdicts = verdicts_on(pool, config.policies, seen, moment)
    nodes: list[NodePlan] = []
    serving: dict[tuple[str | None, int], str] = {}
    for node in pool.nodes:
        was, sample = before[node.name], samples[node.name]
        levels = levels_of(pool, node, config.policies, was)
        judgement = judge(was, after[node.name], sample, verdicts.get(node.name), levels, config.health, moment)
        if node.drain:
            judgement = Judgement("drained", 0, NodeCause.DRAINED_IN_INVENTORY, "drained in the inventory")
        elif node.name in drained:
            judgement = Judgement("drained", 0, NodeCause.DRAINED_BY_OPERATOR, "drained by the operator")
        elif not sample.address:
            judgement = dataclasses.replace(judgement, weight=0)
        elif twin := serving.get((sample.address, node.port)):
            judgement = Judgement("down", 0, NodeCause.SAME_ADDRESS, f"same address as {twin}")
            sample = dataclasses.replace(sample, address=None)
        else:
            serving[sample.address, node.port] = node.name
        nodes.append(plan_node(node, was, sample, seen.get(node.name), judgement))
    plan = keep_serving(pool, config.policies, nodes, any_read=bool(seen))
    remembered_nodes = {
        each.name: dataclasses.replace(
            after[each.name],
            weight=each.weight,
            learned=verdicts[each.name].learned if each.state == "up" else before[each.name].learned,
            host=node.host,
            resolves=samples[each.name].unresolved is None,
            returned_at=back if moment.is_too_soon(back := after[each.name].returned_at) else None,
            doubt=doubt_of(samples[each.name], each, before[each.name], after[each.name].successes),
        )
        for each, node in zip(plan.nodes, pool.nodes, strict=True)
    }
    return plan, remembered_nodes


def verdicts_on(pool: Pool, policies: Policies, seen: Mapping[str, Observation], moment: Moment) -> dict[str, Verdict]:
    """Return what the pool's policy says of the nodes; a node without statistics gets its configured share."""
    with_statistics = {name: each for name, each in seen.items() if each.reading.has_statistics}
    verdicts = POLICIES[pool.policy].weigh(pool, policies, with_statistics, moment)
    for node in pool.nodes:
        if node.name in seen.keys() - with_statistics.keys():
            weight = max(lowest_weight(pool, node, policies), static.weight_of(pool, node))
            reason = f"capacity {node.capacity:g} as configured"
            verdicts[node.name] = Verdict(weight, NodeCause.NO_STATISTICS, reason)
    return verdicts


def doubt_of(sample: Sample, node: NodePlan, was: NodeMemory, successes: int) -> str | None:
    """Return the code of what is not believed of a node's reading.

    A doubt is forgotten after some good scrapes in a row, `successes`: a node that is wrong now and then is named once.
    """
    doubt = sample.cause or (node.cause if node.cause in DOUBTS else None)
    if sample.reading and (doubt or successes % SCRAPES_TO_FORGET == 0):
        return doubt
    return was.doubt


def levels_of(pool: Pool, node: Node, policies: Policies, was: NodeMemory) -> Levels:
    """Return the weights of a node without a usable reading.

    With `capacity` a stale node keeps half of its weight: its learned speed is probably still about right, and with the
    lowest weight the other nodes would have to do all its work.
    """
    lowest = lowest_weight(pool, node, policies)
    if pool.policy == "capacity" and was.learned and was.weight:
        return Levels(lowest, stale=max(lowest, min(was.weight, was.learned.earned_weight // 2)))
    return Levels(lowest, stale=lowest)


def lowest_weight(pool: Pool, node: Node, policies: Policies) -> int:
    """Return the least weight of a node in rotation: enough requests to show that it is well again."""
    return POLICIES[pool.policy].lowest_weight(pool, node, policies)


def plan_node(node: Node, was: NodeMemory, sample: Sample, seen: Observation | None, judgement: Judgement) -> NodePlan:
    """Return what the plan and the status say of a node."""
    reading = seen.reading if seen else None
    return NodePlan(
        name=node.name,
        address=sample.address,
        state=judgement.state,
        kv_cache_usage=reading.kv_cache_usage if reading else None,
        waiting=reading.waiting if reading else None,
        running=reading.running if reading else None,
        preemptions_delta=seen.preemptions_delta if seen else None,
        engines=reading.engines if reading else None,
        weight=judgement.weight,
        previous_weight=was.weight,
        cause=judgement.cause,
        reason=judgement.reason,
        scrape_seconds=round(sample.seconds, 4),
        error_cause=sample.cause,
        error=sample.error,
        kv_cache_tokens=reading.kv_cache_tokens if reading else None,
    )


def keep_serving(pool: Pool, policies: Policies, nodes: Sequence[NodePlan], *, any_read: bool) -> PoolPlan:
    """Never let a pool go empty: hold its last weights when no node can be read, or none would serve."""
    if any_read and any(node.weight for node in nodes):
        return PoolPlan(name=pool.name, held_cause=None, held=None, nodes=tuple(nodes))
    lowest = {node.name: lowest_weight(pool, node, policies) for node in pool.nodes}
    usable = [node for node in nodes if node.address]
    undrained = [node for node in usable if node.state != "drained"]
    # What serves instead, the first that has any node: recovering nodes, the last weights, all nodes with an address.
    returning = {node.name: lowest[node.name] for node in undrained if node.cause == NodeCause.RECOVERING}
    last = {
        node.name: lowest[node.name] if node.previous_weight is None else node.previous_weight for node in undrained
    }
    weights = next((each for each in (returning, last) if any(each.values())), None)
    if weights is None:
        weights = {node.name: lowest[node.name] for node in undrained or usable}
    if not weights:
        why = "no address is known for any node"
        return PoolPlan(name=pool.name, held_cause=HeldCause.NO_ADDRESS, held=why, nodes=tuple(nodes))
    cause = HeldCause.NO_NODE_LEFT if any_read else HeldCause.NO_NODE_READABLE
    why = "no node would be left to serve" if any_read else "no node can be read"
    are_last = weights is last and any(node.previous_weight for node in nodes)
    how = "last weights kept" if are_last else "lowest weights set"
    kept = with_weights(pool, nodes, weights)
    return PoolPlan(name=pool.name, held_cause=cause, held=f"{why}, {how}", nodes=kept)


def with_weights(pool: Pool, nodes: Sequence[NodePlan], weights: Mapping[str, int]) -> tuple[NodePlan, ...]:
    """Return the nodes with these weights. Of two nodes that are one server, only the first one serves."""
    kept, serving = [], set[tuple[str | None, int]]()
    for at, node in zip(nodes, pool.nodes, strict=True):
        weight = 0 if (at.address, node.port) in serving else weights.get(at.name, 0)
        kept.append(dataclasses.replace(at, weight=weight))
        if weight:
            serving.add((at.address, node.port))
    return tuple(kept)
