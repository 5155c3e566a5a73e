# SPDX-License-Identifier: Apache-2.0
"""The policy `capacity`: weights from the measured speed and load of the nodes.

`least_conn` knows how many requests it has at each node. It does not know how fast a node is, or which other requests
the node has. This policy measures the speed of a node: generated tokens per second and running request. The fair share
of a node is its part of all requests, per engine, in proportion to speed ** speed_exponent. A weight is corrected by
how far its node is from the fair share. This also corrects for requests that do not pass this nginx:

    weight *= (fair_share / requests) ** CORRECTION

A change costs a reload, which zeroes nginx's own counts. So a large change needs the last readings alone, and a smaller
one needs more readings. What was measured before a change is forgotten. docs/decisions.md has the measurements.
This module learns and decides when a weight changes; fair_share.py computes by how much.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from vllm_lb.causes import NodeCause
from vllm_lb.memory import Learned, Means
from vllm_lb.policies import Verdict, static
from vllm_lb.policies.fair_share import FEW_REQUESTS, corrections
from vllm_lb.settings import MAX_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.policies import Moment, Observation
    from vllm_lb.settings import Capacity, Node, Policies, Pool

SLOW_START = (0.5, 1.0)  # a returning node gets the lowest weight, then these shares of its earned weight
RECENT_READINGS, LONGER_READINGS = 2, 20  # readings in the two averages
ENOUGH_READINGS = 4  # the longer average counts from this many readings on
GAP_SECONDS = 60  # readings further apart are not compared


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
        changed = next_steps(rules, learned, awake) or corrected(rules, learned, weights, whole=len(pool.nodes))
    return {
        name: verdict(each, changed.get(name, weights[name]), has_step=name in changed, forget=bool(changed))
        for name, each in learned.items()
    }


def lowest_weight(_pool: Pool, _node: Node, policies: Policies) -> int:
    """Return the weight with which slow start begins."""
    return policies.capacity.lowest_weight


def verdict(learned: Learned, weight: int, *, has_step: bool, forget: bool) -> Verdict:
    """Return the verdict on a node with its new weight.

    `forget` drops what was measured, because a weight of the pool changed. `has_step`: the node took a step of slow
    start.
    """
    steps = learned.steps - (learned.steps > 0 and has_step)
    after = dataclasses.replace(
        learned,
        readings=0 if forget else learned.readings,
        steps=steps,
        earned_weight=learned.earned_weight if learned.steps else weight,
    )
    if learned.steps:
        done = len(SLOW_START) - steps
        way = f"step {done} of {len(SLOW_START)} back to {after.earned_weight}"
        return Verdict(weight, NodeCause.SLOW_START, way, after)
    means = f"{learned.recent.speed:.1f} tokens/s a request, {learned.recent.requests:.1f} requests"
    return Verdict(weight, NodeCause.LEARNED, means, after)


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
            earned_weight=first_weight,
            steps=steps if is_new else 0,
            slow_start_ends_at=ends_at if is_new else None,
        )
    if not returns:
        ends_at = before.slow_start_ends_at
    ramps = is_in_slow_start(ends_at, moment)
    after = dataclasses.replace(
        before,
        at=moment.now,
        generation_tokens=reading.generation_tokens,
        finished=reading.finished,
        running=reading.running,
        readings=before.readings if moment.applied and not returns and not ramps else 0,
        steps=steps if returns else before.steps,
        slow_start_ends_at=ends_at,
    )
    means = None if ramps else measured(seen, before, moment.now)
    if means is None:
        return after
    readings = after.readings + 1
    return dataclasses.replace(
        after,
        readings=readings,
        recent=before.recent.updated(means, 1 / min(readings, RECENT_READINGS)),
        longer=before.longer.updated(means, 1 / min(readings, LONGER_READINGS)),
    )


def is_in_slow_start(ends_at: float | None, moment: Moment) -> bool:
    """Tell whether nginx's Lua still gives a node less than its weight: its few requests say nothing of its speed."""
    # The monotonic clock starts again at boot: a time too far in the future is from before it.
    return ends_at is not None and 0 < ends_at - moment.now <= moment.slow_start_seconds


def measured(seen: Observation, before: Learned, now: float) -> Means | None:
    """Return what a node did since the reading before, or None if the two readings cannot tell."""
    reading = seen.reading
    seconds, in_batch = now - before.at, (before.running + reading.running) / 2
    if reading.generation_tokens is None or before.generation_tokens is None:
        return None
    generated = reading.generation_tokens - before.generation_tokens
    has_restarted, is_frozen = generated < 0, reading.fingerprint == seen.was.fingerprint
    if not 0 < seconds <= GAP_SECONDS or in_batch < 1 or has_restarted or is_frozen:
        return None
    return Means(
        speed=min(2.0**53, generated / seconds / in_batch),  # the largest value that memory.json may hold
        running=in_batch / reading.engines,
        waiting=reading.waiting / reading.engines,
        finished=max(0, (reading.finished or 0) - (before.finished or 0)) / reading.engines,
        kv_cache_usage=reading.kv_cache_usage,
        engines=reading.engines,
    )


def next_steps(rules: Capacity, learned: Mapping[str, Learned], seen: Mapping[str, Observation]) -> dict[str, int]:
    """Return the next weights of nodes in slow start whose present weight has been live for a tick."""
    return {
        name: max(rules.lowest_weight, round(each.earned_weight * SLOW_START[-each.steps]))
        for name, each in learned.items()
        if each.steps and seen[name].was.up and seen[name].was.weight
    }


def corrected(
    rules: Capacity, learned: Mapping[str, Learned], weights: Mapping[str, int], whole: int
) -> dict[str, int]:
    """Return the corrected weights, or none if the deviation may be chance.

    `whole` is how many nodes the pool has. While some of them lack readings, the largest weight of the others stays as
    it is, so that the proportion to the former does not change.
    """
    ready = {name: each for name, each in learned.items() if not each.steps and each.readings >= RECENT_READINGS}
    if len(ready) < 2:  # noqa: PLR2004 - a single node has nothing to be compared with
        return {}
    top = MAX_WEIGHT if len(ready) == whole else max(weights[name] for name in ready)
    present = scaled({name: weights[name] for name in ready}, top)
    readings = min(each.readings for each in ready.values())
    lasting = max(rules.min_change_ratio, 1 / math.sqrt(readings)) if readings >= ENOUGH_READINGS else math.inf
    for span, most_readings, needed in (
        ("recent", RECENT_READINGS, rules.sudden_change_ratio),
        ("longer", LONGER_READINGS, lasting),
    ):
        means = {name: getattr(each, span) for name, each in ready.items()}
        if sum(each.requests for each in means.values()) < FEW_REQUESTS * len(ready):
            continue
        factors = corrections(rules, means, present, min(readings, most_readings))
        wanted = {
            name: max(rules.lowest_weight, each)
            for name, each in scaled({name: weights[name] * factors[name] for name in ready}, top).items()
        }
        if max(abs(wanted[name] / present[name] - 1) for name in ready) >= needed:
            return {name: round(each) for name, each in wanted.items()}
    return {}


def scaled(weights: Mapping[str, float], largest: float) -> dict[str, float]:
    """Return weights in the same proportions, the largest of which is `largest`."""
    return {name: largest * each / max(weights.values()) for name, each in weights.items()}
