"""Contestants in virtual time: nginx without anything that changes its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.virtual.contestant import Contestant
from benchmarks.virtual.nginx_model import Nginx, Ticket

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


class StaticNginx(Contestant):
    """Nginx with the same weight for every node; it is never reloaded."""

    def __init__(self, name: str, method: str, *, zone: bool = True) -> None:
        """Balance by this method."""
        self.name, self.method, self.zone = name, method, zone

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start nginx."""
        del scenario
        self.nginx = Nginx([1] * len(nodes), method=self.method, chance=chance, zone=self.zone)

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Ticket] | None:
        """Let nginx choose."""
        del call
        ticket = self.nginx.choose(tried, now)
        return (ticket.server, ticket) if ticket else None

    def ended(self, ticket: Ticket, now: float, *, failed: bool) -> None:
        """Count the end of a request."""
        self.nginx.free(ticket, now, failed=failed)
