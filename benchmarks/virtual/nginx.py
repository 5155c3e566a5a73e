"""Contestants in virtual time: nginx, without weights and with those of the script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vllm_nginx_lb as lb
from benchmarks.virtual.contestant import Contestant
from benchmarks.virtual.nginx_model import Nginx, Ticket

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


class StaticNginx(Contestant):
    """Nginx with the same weight for every node, never reloaded."""

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


class ScriptWeights(StaticNginx):
    """Nginx with weights by the script: its decide and its reload_limits, called as a tick calls them."""

    def __init__(
        self,
        name: str,
        policy: str,
        *,
        known: bool = False,
        reload_limits: dict[str, Any] | None = None,
        **policies: Any,
    ) -> None:
        """Decide by a policy of the script.

        `known`: the operator has set the nodes' capacities. In the script's configuration, `reload_limits` overrides
        settings of `nginx`, and `policies` those of `policies`.
        """
        super().__init__(name, "least_conn")
        self.policy, self.known, self.reload_limits, self.policies = policy, known, reload_limits or {}, policies

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start nginx with equal weights; the first tick follows at once."""
        super().begin(nodes, scenario, chance)
        settings = {
            "nginx": self.reload_limits,
            "policies": self.policies,
            "pools": [
                {
                    "name": "llm_cluster",
                    "policy": self.policy,
                    "nodes": [
                        {"name": f"node-{node.index}", "host": node.address, "capacity": speed if self.known else 1.0}
                        for node, speed in zip(nodes, scenario.speeds, strict=True)
                    ],
                }
            ],
        }
        problems: list[str] = []
        self.config = lb.build(lb.Config, settings, "", problems)
        if problems:
            raise ValueError("; ".join(problems))
        self.nodes = nodes
        self.memory: dict[str, lb.NodeMemory] = {}
        self.reloaded_at, self.peak_draining, self.settled = -1e9, 0, True

    def tick(self, now: float) -> None:
        """Scrape, decide, and reload if that is due."""
        samples = {f"node-{node.index}": node.sample() for node in self.nodes}
        plans, self.memory = lb.decide(self.config, samples, self.memory, set(), now, settled=self.settled)
        wanted = [node.weight for node in plans[0].nodes]
        self.settled = False
        self.peak_draining = max(self.peak_draining, self.nginx.draining)
        if wanted == self.nginx.weights:
            self.settled = True
            return
        before, after = as_upstream(self.nginx.weights), as_upstream(wanted)
        if lb.membership(before) == lb.membership(after):
            age = now - self.reloaded_at
            if lb.reason_to_wait(self.config.nginx, before, after, age, self.nginx.draining):
                return
        self.nginx.reload(wanted)
        self.settled, self.reloaded_at = True, now

    def report(self, summary: Summary) -> None:
        """Add reloads and draining genereload_limitss. The first reload only replaces the seed."""
        summary.peak_draining = self.peak_draining
        summary.reloads_per_hour = float(max(0, self.nginx.reloads - 1))


def as_upstream(weights: Sequence[int]) -> str:
    """Return weights as the upstream file has them."""
    return "\n".join(f"server {i} {f'weight={weight}' if weight else 'down'};" for i, weight in enumerate(weights))
