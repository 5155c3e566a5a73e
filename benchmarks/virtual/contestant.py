"""What every contestant in virtual time has in common."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


class Contestant(abc.ABC):
    """One way to choose nodes. Times are seconds of the model.

    Attributes:
        name: the contestant's name in tables.
        ingress: which of the scenario's ingresses it is, from 0; each is a contestant of its own.
        most_nodes: of a fleet for which it is quick enough.
    """

    name: str
    ingress: int = 0
    most_nodes: int = 1000

    @abc.abstractmethod
    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Forget all earlier runs and start; `chance` is the only source of randomness."""

    @abc.abstractmethod
    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Any] | None:
        """Choose a node for a request.

        `tried`: indices of the nodes that have refused it.

        Returns:
            The node's index, and a ticket that first_token() and ended() get; None if no node is left.
        """

    def first_token(self, ticket: Any, now: float) -> None:
        """Take note of a request's first token; not called if its answer is not streamed."""
        del ticket, now

    def ended(self, ticket: Any, now: float, *, failed: bool) -> None:
        """Take note of a request's end."""
        del ticket, now, failed

    def tick(self, now: float) -> None:
        """Do what the script's timer starts; called every scenario.INTERVAL_SECONDS."""
        del now

    def report(self, summary: Summary) -> None:
        """Set the fields of a run's summary that only the contestant knows: reloads, in number, and draining."""
        del summary
