"""Contestants in virtual time: nginx with the weights of the script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.virtual.nginx import StaticNginx
from vllm_lb.config_file import check_config
from vllm_lb.decide import decide
from vllm_lb.published import pools_to_publish, record_for
from vllm_lb.reload_limit import reason_to_wait

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.node import VirtualNode
    from vllm_lb.memory import NodeMemory
    from vllm_lb.published import Record


class ScriptWeights(StaticNginx):
    """Nginx with the weights of the script: its decide() and its limits of reloads, called as a tick calls them.

    Attributes:
        balancer: as in the script's settings; it decides whether the weights do slow start.
    """

    balancer = "upstream"

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
        capacities = scenario.speeds if self.known else [1.0] * len(nodes)
        settings = {
            "nginx": {"balancer": self.balancer, "confirm_url": "http://127.0.0.1/", **self.reload_limits},
            "policies": self.policies,
            "pools": [
                {
                    "name": "llm_cluster",
                    "policy": self.policy,
                    "nodes": [
                        {"name": node.name, "host": node.address, "capacity": capacity}
                        for node, capacity in zip(nodes, capacities, strict=True)
                    ],
                }
            ],
        }
        self.config = check_config(settings, Path(self.name))
        self.nodes = nodes
        self.memory: dict[str, NodeMemory] = {}
        self.published: Record | None = None  # None: the seed, which has equal weights
        self.published_at, self.peak_draining, self.applied = 0.0, 0, True

    def tick(self, now: float) -> None:
        """Scrape, decide, and reload if the limits of reloads allow it."""
        samples = {node.name: node.sample() for node in self.nodes}
        plans, self.memory = decide(self.config, samples, self.memory, set(), now, applied=self.applied)
        wanted = record_for(pools_to_publish(self.config, plans), template="", content="")
        self.peak_draining = max(self.peak_draining, self.nginx.draining)
        self.applied = wanted == self.published or not self.waits(wanted, now)
        if self.applied and wanted != self.published:
            self.publish([node.weight for node in plans[0].nodes], now)
            self.published, self.published_at = wanted, now

    def publish(self, weights: Sequence[int], now: float) -> None:
        """Make weights live, in the order of the nodes."""
        del now
        self.nginx.reload(weights)

    def waits(self, wanted: Record, now: float) -> bool:
        """Tell whether a change must wait, as vllm_lb.apply decides it."""
        if self.published is None or self.published.membership != wanted.membership:
            return False
        age = now - self.published_at
        return reason_to_wait(self.config.nginx, self.published, wanted, age, self.nginx.draining) is not None

    def report(self, summary: Summary) -> None:
        """Set reloads and draining. The first reload does not count: it replaces the seed."""
        summary.peak_draining = self.peak_draining
        summary.reloads_per_hour = float(max(0, self.nginx.reloads - 1))
