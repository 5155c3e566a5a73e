"""Contestants in virtual time that cannot exist: they know the true state of every node at every moment."""

from __future__ import annotations

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
