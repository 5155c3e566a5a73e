"""The law that the project's issue names smetric: the least time to first token, by a rate learned of each worker.

We found no published source under that name; this is the law in the issue's words, and its constants are ours. A
worker's rate is what it has shown: the uncached tokens that were pending there when a request was sent, its own
included, over the time to its first token, as an exponentially weighted mean. The expected time is pending plus own
uncached tokens over the rate. A worker without a rate has the mean of those that have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.virtual.peers.router import PrefixRouter

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.virtual.peers.router import Ticket
    from benchmarks.workload import Call

NEW_SHARE = 0.1  # of the newest sample in a rate


class Smetric(PrefixRouter):
    """Learns from first tokens.

    Attributes:
        rates: tokens a second by node; None: not known yet.
    """

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start without rates."""
        super().begin(nodes, scenario, chance)
        self.rates: list[float | None] = [None] * len(nodes)

    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose the worker with the least expected time."""
        known = [rate for rate in self.rates if rate is not None]
        mean = sum(known) / len(known) if known else 1.0

        def seconds(node: int) -> float:
            tokens = self.tokens[node] + self.uncached(call, cached, node)
            return tokens / (self.rates[node] or mean)

        return self.best(usable, seconds)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Learn the worker's rate."""
        sample = ticket.ahead / max(1e-6, now - ticket.sent_at)
        rate = self.rates[ticket.node]
        self.rates[ticket.node] = sample if rate is None else rate + NEW_SHARE * (sample - rate)
        super().first_token(ticket, now)
