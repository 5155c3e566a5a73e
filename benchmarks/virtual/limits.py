"""Contestants in virtual time that cannot exist: they know the true state of every node at every moment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.virtual.contestant import Contestant

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


class Limit(Contestant):
    """Chooses the node with the least cost by its true state; hidden requests, which pass no proxy, count too."""

    def __init__(self, name: str, cost: Callable[[VirtualNode], float]) -> None:
        """Take the cost of a node; ties are decided at random."""
        self.name, self.cost = name, cost

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start."""
        del scenario
        self.nodes, self.chance = nodes, chance

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, None] | None:
        """Choose the node with the least cost among those that are up."""
        del call, now
        usable = [node for node in self.nodes if node.up and node.index not in tried]
        if not usable:
            return None
        return min(usable, key=lambda node: (self.cost(node), self.chance.random())).index, None


def queue_length(node: VirtualNode) -> float:
    """Return the requests of a node per speed: join-the-shortest-queue without delay, with known capacities."""
    return (node.load + 1) / node.engine.speed


DECODE_COST_SECONDS = 0.002  # of a running sequence, beside its part of a step; by trial


def time_to_first_token(node: VirtualNode) -> float:
    """Return an estimate of the seconds until a new request would get its first token: the cost of the oracle.

    From the engine's model of a step: prompt tokens, the steps they take, and sequences that continue.
    """
    config, pending = node.engine.config, node.pending_tokens
    steps = 1 + pending / config.max_num_batched_tokens
    prompts = pending * config.prefill_token_seconds + steps * config.step_seconds
    decodes = len(node.engine.running) * (config.decode_sequence_seconds + DECODE_COST_SECONDS)
    return (prompts + decodes) / node.engine.speed


class Exact(Contestant):
    """Plays each node forward to the request's first token, and chooses the node where that comes first.

    It is exact but for requests that come later: queues, caches, speeds, steps under way and preemptions are the true
    ones. It is greedy: it does not weigh what a choice costs other requests.
    """

    most_nodes = 64  # its time grows with the nodes

    def __init__(self, name: str) -> None:
        """Take the name in tables."""
        self.name = name

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start."""
        del scenario
        self.nodes, self.chance = nodes, chance

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, None] | None:
        """Choose the node with the first first token among those that are up.

        Nodes that look good are played first, so that others need not be played, or not to the end.
        """
        usable = [node for node in self.nodes if node.up and node.index not in tried]
        best, soonest = None, math.inf
        for node in sorted(usable, key=lambda node: (prompt_seconds(node, call), self.chance.random())):
            at = first_token_at(node, call, now, soonest) if earliest(node, call, now) < soonest else math.inf
            if best is None or at < soonest:
                best, soonest = node, at
        return (best.index, None) if best else None


def prompt_seconds(node: VirtualNode, call: Call) -> float:
    """Return an estimate of the seconds until a request gets its first token, its own prompt included."""
    own = (call.prompt_tokens - node.cached_tokens(call)) * node.engine.config.prefill_token_seconds
    return time_to_first_token(node) + own / node.engine.speed


def earliest(node: VirtualNode, call: Call, now: float) -> float:
    """Return a time before which a request cannot get its first token.

    Where other prompts are under way, these may bring what the request shares with them into the cache.
    """
    config = node.engine.config
    tokens = 1 if node.pending_tokens else max(1, call.prompt_tokens - node.cached_tokens(call))
    steps = -(-tokens // config.max_num_batched_tokens)
    seconds = steps * config.step_seconds + tokens * config.prefill_token_seconds
    return (node.engine.step_ends_at or now) + seconds / node.engine.speed


def first_token_at(node: VirtualNode, call: Call, now: float, until: float) -> float:
    """Return when a request that a node gets now has its first token if no other comes; inf: not before `until`."""
    engine = node.engine.copy()
    request = node.request(call)
    engine.submit(request, now)
    ends_at = engine.step_ends_at or engine.begin(now)
    while ends_at is not None and ends_at < until:
        engine.finish()
        if request.first_token_at is not None:
            return request.first_token_at
        ends_at = engine.begin(ends_at)
    return math.inf
