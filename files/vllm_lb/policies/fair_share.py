# SPDX-License-Identifier: Apache-2.0
"""How many requests each node should have, and by how much that corrects its weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_lb.memory import Means
    from vllm_lb.settings import Capacity

FEW_REQUESTS = 2.0  # per engine; with fewer, their number is mostly chance
CORRECTION, MOST_GROWTH = 0.7, 1.5  # exponent, and largest factor, of one correction
FEW_NODES = 4  # of up to so many, a node that deviates moves all: each is a large part of the fair share
SURE_AT = 2.0  # at this many standard deviations, half of a deviation counts


def corrections(
    rules: Capacity, means: Mapping[str, Means], weights: Mapping[str, float], readings: Mapping[str, int]
) -> dict[str, float]:
    """Return the factor for each node's weight that brings the node's requests closer to its fair share.

    `readings` is the number of readings in the means of each node.
    """
    if not any(each.speed for each in means.values()):
        return dict.fromkeys(means, 1.0)
    fair = fair_shares(rules, means)
    per_weight = sum(each.requests * each.engines for each in means.values()) / sum(weights.values())
    factors = {}
    for name, each in means.items():
        has = credible_requests(each, per_weight * weights[name] / each.engines, readings[name])
        # FEW_REQUESTS on both sides: between 0 and 1 request there is no infinite difference.
        factors[name] = min(MOST_GROWTH, ((fair[name] + FEW_REQUESTS) / (has + FEW_REQUESTS)) ** CORRECTION)
    return factors


def by_own_evidence(
    present: Mapping[str, float], wanted: Mapping[str, float], needed: Mapping[str, float]
) -> dict[str, float]:
    """Return the wanted weights of the nodes whose own change is more than chance, and the present ones of the others.

    Of more nodes, one deviates further by chance: the largest of n, by about the root of the logarithm of n.
    """
    changes = {name: each / present[name] for name, each in wanted.items()}
    usual = upper_quartile(changes.values())
    doubt = math.sqrt(math.log(len(present), FEW_NODES))
    moves = {name: abs((each / usual) ** (1 / doubt) - 1) >= needed[name] for name, each in changes.items()}
    return {name: each * changes[name] / usual if moves[name] else each for name, each in present.items()}


def upper_quartile(values: Iterable[float]) -> float:
    """Return the value that at most a quarter of them exceeds.

    It is the scale of a pool's corrections: one noisy mean of many does not move it, as it moves the largest.
    """
    ordered = sorted(values)
    return ordered[math.ceil(0.75 * len(ordered)) - 1]


def bounded(values: Mapping[str, float], capacities: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Return the values, each at most what most_of() allows."""
    most = most_of(values, capacities, ratio)
    return {name: min(each, most[name]) for name, each in values.items()}


def most_of(values: Mapping[str, float], capacities: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Return how large the value of each node may be: `ratio` times the median of all, by configured capacity.

    Of an even number the lower of both medians counts, so that one of two nodes cannot be the measure of itself. Nodes
    with 0 do not count: one that does nothing says nothing of the others.
    """
    by_capacity = sorted(each / capacities[name] for name, each in values.items() if each)
    median = by_capacity[(len(by_capacity) - 1) // 2] if by_capacity else 0.0
    return {name: ratio * median * capacities[name] for name in values}


def credible_requests(means: Means, by_weight: float, readings: int) -> float:
    """Return the requests per engine, without the part of their deviation from `by_weight` that is probably chance.

    `by_weight` is how many requests per engine the node's weight should give it. A number of requests varies by chance,
    by about its square root. Two readings of the same long streams are not independent, so the number of requests that
    have ended says how many independent readings there are. A Wiener filter keeps the part of the deviation that is
    signal: off ** 2 of off ** 2 + noise ** 2.
    """
    off = means.requests - by_weight
    turnovers = means.finished * readings / max(1.0, means.requests)
    if not off or not turnovers:
        return by_weight
    noise = SURE_AT**2 * max(1.0, by_weight) / turnovers
    return by_weight + off * off**2 / (off**2 + noise)


def fair_shares(rules: Capacity, means: Mapping[str, Means]) -> dict[str, float]:
    """Share all requests out by speed, to no node more than it can hold; if all are full, by what they can hold."""
    room = {name: room_for(each, rules.max_kv_cache_usage) for name, each in means.items()}
    total = left = sum(each.requests for each in means.values())
    if sum(room.values()) <= total:
        return {name: total * each / sum(room.values()) for name, each in room.items()}
    speeds = {name: each.speed**rules.speed_exponent for name, each in means.items()}
    fair: dict[str, float] = {}
    while len(fair) < len(means):
        whole = sum(speed for name, speed in speeds.items() if name not in fair)
        share = {name: left * speed / whole if whole else 0.0 for name, speed in speeds.items() if name not in fair}
        full = {name: room[name] for name, each in share.items() if each > room[name]}
        fair |= full or share
        left = total - sum(fair.values())
    return fair


def room_for(means: Means, max_kv_cache_usage: float) -> float:
    """Return how many requests an engine can run at once: up to a KV-cache usage, or what it runs while others wait."""
    by_memory = max_kv_cache_usage * max(1.0, means.running) / max(means.kv_cache_usage, 0.01)
    return min(by_memory, means.running / means.batch_share) if means.waiting >= FEW_REQUESTS else by_memory
