# SPDX-License-Identifier: Apache-2.0
"""The policy `capacity`: weights from the measured speed and load of the nodes.

`least_conn` knows how many requests it has at each node. It does not know how fast a node is, or which other requests
the node has. This policy measures the speed of a node: generated tokens per second and running request. The fair share
of a node is its part of all requests, per engine, in proportion to speed ** speed_exponent. A weight is corrected by
how far its node is from the fair share. This also corrects for requests that do not pass this nginx:

    weight *= (fair_share / requests) ** CORRECTION

A change costs a reload, which zeroes nginx's own counts. So a large change needs the last readings alone, and a smaller
one needs more readings. What was measured before a change is forgotten. docs/decisions.md has the measurements.

A node's word has a bound. A speed that no engine has is not believed. By its configured capacity, a node counts for at
most max_learned_ratio times its pool's median. So a node that lies cannot take more than that from the others.

This module learns and decides when a weight changes; measure.py computes what a node did, fair_share.py by how much a
weight changes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from vllm_lb.causes import NodeCause
from vllm_lb.memory import Learned
from vllm_lb.policies import Verdict, static
from vllm_lb.policies.fair_share import FEW_NODES, FEW_REQUESTS, bounded, by_own_evidence, corrections, most_of
from vllm_lb.policies.measure import MAX_SPEED, measured
from vllm_lb.settings import MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.policies import Moment, Observation
    from vllm_lb.settings import Capacity, Node, Policies, Pool

SLOW_START = (0.5, 1.0)  # a returning node gets the lowest weight, then these shares of its earned weight
RECENT_READINGS, LONGER_READINGS = 2, 20  # readings in the two averages
ENOUGH_READINGS = 4  # the longer average counts from this many readings on
AT_THE_BOUND = 0.99  # of it: weights are whole numbers


def weigh(pool: Pool, policies: Policies, seen: Mapping[str, Observation], moment: Moment) -> dict[str, Verdict]:
    """Weigh nodes so that each gets the requests that suit its speed, and no more than its KV cache can hold."""
    rules = policies.capacity
    awake = {name: each for name, each in seen.items() if each.reading.awake}
    first = {node.name: max(rules.lowest_weight, static.weight_of(pool, node)) for node in pool.nodes}
    is_running = any(each.was.learned for each in awake.values())
    learned = {name: learn(each, first[name], moment, is_running=is_running) for name, each in awake.items()}
    weights = {
        name: (awake[name].was.weight or rules.lowest_weight) if each.steps else each.earned_weight
        for name, each in learned.items()
    }
    changed: dict[str, int] = {}
    if is_running and moment.applied:
        changed = next_steps(rules, learned, awake, moment) or corrected(rules, learned, weights, pool)
    verdicts = {
        name: verdict(each, changed.get(name, weights[name]), moment, has_step=name in changed, forget=bool(changed))
        for name, each in learned.items()
    }
    return with_bounds(verdicts, rules, pool)


def lowest_weight(_pool: Pool, _node: Node, policies: Policies) -> int:
    """Return the weight with which slow start begins."""
    return policies.capacity.lowest_weight


def verdict(learned: Learned, weight: int, moment: Moment, *, has_step: bool, forget: bool) -> Verdict:
    """Return the verdict on a node with its new weight.

    `forget` drops what was measured, because a weight of the pool changed. `has_step`: the node took a step of slow
    start.
    """
    takes_step = learned.steps > 0 and has_step
    steps = learned.steps - takes_step
    after = dataclasses.replace(
        learned,
        readings=0 if forget else learned.readings,
        steps=steps,
        stepped_at=(moment.now if takes_step else learned.stepped_at) if steps else None,
        earned_weight=learned.earned_weight if learned.steps else weight,
    )
    if learned.steps:
        done = len(SLOW_START) - steps
        way = f"step {done} of {len(SLOW_START)} back to {after.earned_weight}"
        return Verdict(weight, NodeCause.SLOW_START, way, after)
    if learned.claim:
        claim = f"claims {learned.claim:.0f} tokens/s a request, which no engine has: its weight stays"
        return Verdict(weight, NodeCause.IMPLAUSIBLE, claim, after)
    means = f"{learned.recent.speed:.1f} tokens/s a request, {learned.recent.requests:.1f} requests"
    return Verdict(weight, NodeCause.LEARNED, means, after)


def with_bounds(verdicts: Mapping[str, Verdict], rules: Capacity, pool: Pool) -> dict[str, Verdict]:
    """Return the verdicts; a node that counts for less than it claims, or has the most allowed, is BOUNDED."""
    capacities, ratio = {node.name: node.capacity for node in pool.nodes}, rules.max_learned_ratio
    weights, speeds = dict[str, float](), dict[str, float]()
    for name, each in verdicts.items():
        if each.cause == NodeCause.LEARNED and each.learned:
            weights[name], speeds[name] = each.weight, each.learned.recent.speed
    most_weight, most_speed = most_of(weights, capacities, ratio), most_of(speeds, capacities, ratio)
    bound = f", counts for at most {ratio:g} times the pool's median (policies.capacity.max_learned_ratio)"
    return {
        name: dataclasses.replace(each, cause=NodeCause.BOUNDED, reason=each.reason + bound)
        if name in weights and (weights[name] >= AT_THE_BOUND * most_weight[name] or speeds[name] > most_speed[name])
        else each
        for name, each in verdicts.items()
    }


def learn(seen: Observation, first_weight: int, moment: Moment, *, is_running: bool) -> Learned:
    """Return what is known of a node after one more reading. If the pool `is_running`, a new node gets slow start."""
    reading, was, before = seen.reading, seen.was, seen.was.learned
    returns = was.up is False or was.weight == 0
    steps = len(SLOW_START) if moment.slow_start else 0
    ends_at = None if moment.slow_start else moment.now + moment.slow_start_seconds
    if before is None:
        is_new = is_running or returns
        return Learned(
            at=moment.now,
            generation_tokens=reading.generation_tokens,
            finished=reading.finished,
            running=reading.running,
            waiting=reading.waiting,
            token_gaps=reading.token_gaps,
            token_gap_seconds=reading.token_gap_seconds,
            earned_weight=first_weight,
            steps=steps if is_new else 0,
            stepped_at=moment.now,
            slow_start_ends_at=ends_at if is_new else None,
        )
    if not returns:
        ends_at = before.slow_start_ends_at
    ramps = is_in_slow_start(ends_at, moment)
    begins_anew = returns or ramps or not moment.applied
    if moment.is_too_soon(before.at) and not begins_anew:
        return before  # readings of one moment must not count as an average over time
    after = dataclasses.replace(
        before,
        at=moment.now,
        generation_tokens=reading.generation_tokens,
        finished=reading.finished,
        running=reading.running,
        waiting=reading.waiting,
        token_gaps=reading.token_gaps,
        token_gap_seconds=reading.token_gap_seconds,
        readings=0 if begins_anew else before.readings,
        steps=steps if returns else before.steps,
        stepped_at=moment.now if returns or not moment.applied else before.stepped_at,
        slow_start_ends_at=ends_at,
    )
    means = None if ramps or moment.is_too_soon(before.at) else measured(seen, before, moment.now)
    if means is None:
        return after
    if means.speed > MAX_SPEED:
        return dataclasses.replace(after, claim=means.speed, readings=0)
    readings = after.readings + 1
    return dataclasses.replace(
        after,
        claim=None,
        readings=readings,
        recent=before.recent.updated(means, 1 / min(readings, RECENT_READINGS)),
        longer=before.longer.updated(means, 1 / min(readings, LONGER_READINGS)),
    )


def is_in_slow_start(ends_at: float | None, moment: Moment) -> bool:
    """Tell whether nginx's Lua still gives a node less than its weight: its few requests say nothing of its speed."""
    # The monotonic clock starts again at boot: a time too far in the future is from before it.
    return ends_at is not None and 0 < ends_at - moment.now <= moment.slow_start_seconds


def next_steps(
    rules: Capacity, learned: Mapping[str, Learned], seen: Mapping[str, Observation], moment: Moment
) -> dict[str, int]:
    """Return the next weights of nodes in slow start whose present weight has been live for an interval."""
    return {
        name: max(rules.lowest_weight, round(each.earned_weight * SLOW_START[-each.steps]))
        for name, each in learned.items()
        if each.steps and seen[name].was.up and seen[name].was.weight and not moment.is_too_soon(each.stepped_at)
    }


def corrected(
    rules: Capacity, learned: Mapping[str, Learned], weights: Mapping[str, int], pool: Pool
) -> dict[str, int]:
    """Return the corrected weights, or none if all deviations may be chance.

    In a pool of more than FEW_NODES, only nodes move whose own deviation is more than chance. While some nodes lack
    readings, the largest weight of the others stays as it is, so that the proportion to the former does not change.
    """
    ready = {name: each for name, each in learned.items() if not each.steps and each.readings >= RECENT_READINGS}
    if len(ready) < 2:  # noqa: PLR2004 - a single node has nothing to be compared with
        return {}
    capacities = {node.name: node.capacity for node in pool.nodes}
    top = MAX_WEIGHT if len(ready) == len(pool.nodes) else max(weights[name] for name in ready)
    present = scaled({name: weights[name] for name in ready}, top)
    for span, most_readings in (("recent", RECENT_READINGS), ("longer", LONGER_READINGS)):
        means = {name: getattr(each, span) for name, each in ready.items()}
        speeds = bounded({name: each.speed for name, each in means.items()}, capacities, rules.max_learned_ratio)
        means = {name: dataclasses.replace(each, speed=speeds[name]) for name, each in means.items()}
        if sum(each.requests for each in means.values()) < FEW_REQUESTS * len(ready):
            continue
        readings = {name: min(each.readings, most_readings) for name, each in ready.items()}
        factors = corrections(rules, means, present, readings)
        believed = bounded({name: present[name] * factors[name] for name in ready}, capacities, rules.max_learned_ratio)
        needed = {name: change_needed(rules, span, each.readings) for name, each in ready.items()}
        if len(ready) > FEW_NODES:
            believed = by_own_evidence(present, believed, needed)
        wanted = {name: max(rules.lowest_weight, each) for name, each in scaled(believed, top).items()}
        if max(abs(wanted[name] / present[name] - 1) / needed[name] for name in ready) >= 1:
            return {name: round(each) for name, each in wanted.items()}
    return {}


def change_needed(rules: Capacity, span: str, readings: int) -> float:
    """Return the relative change of a weight that is more than chance after so many readings of the node."""
    if span == "recent":
        return rules.sudden_change_ratio
    return max(rules.min_change_ratio, 1 / math.sqrt(readings)) if readings >= ENOUGH_READINGS else math.inf


def scaled(weights: Mapping[str, float], largest: float) -> dict[str, float]:
    """Return weights in the same proportions, the largest of which is `largest`."""
    return {name: largest * each / max(weights.values()) for name, each in weights.items()}
