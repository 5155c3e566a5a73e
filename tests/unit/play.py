"""A pool of nodes whose counters grow, for tests of the policy `capacity`."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.unit.samples import config, good
from vllm_lb.decide import decide

if TYPE_CHECKING:
    from vllm_lb.memory import NodeMemory
    from vllm_lb.observation import Sample
    from vllm_lb.plan import NodePlan

TICK_SECONDS = 10
TOKENS = 200  # tokens of an answer
BATCH = 40  # with so many requests per engine, each is half as fast as a single request


@dataclass
class Engine:
    """A node as the balancer sees it, and its true state."""

    fast: float = 40.0  # tokens per second of a single request
    engines: int = 1
    hidden: float = 0.0  # requests that nginx does not see
    kv: float = 0.3
    frozen: bool = False  # its metrics do not change
    counts: bool = True  # it has token counters
    times: bool = True  # it adds up the times between tokens
    claims: float = 1.0  # it says that it generates so many times what it does
    hides: bool = False  # it says that it has no requests
    awake: bool = True
    fault: Sample | None = None  # the sample of each scrape instead of a reading
    tokens: float = 0.0
    finished: float = 0.0
    running_seconds: float = 0.0
    requests: float = 0.0


class Play:
    """A pool with a steady number of `requests`, which nginx spreads by the weights."""

    def __init__(self, requests: float = 60, *, noise: float = 0.0, seed: int = 1, **nodes: Engine) -> None:
        """Start with nothing remembered."""
        self.nodes, self.requests, self.noise = nodes, requests, noise
        self.random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self.now = 1000.0
        self.memory: dict[str, NodeMemory] = {}
        self.drained: set[str] = set()
        self.applied = True
        self.moves = 0
        self.capacities: dict[str, float] = {}
        self.rules: dict[str, float] = {}
        self.nginx: dict[str, Any] = {}
        self.ramps: dict[str, float] = {}  # shares of their weights that nginx gives nodes
        self.plan: dict[str, NodePlan] = {}

    @property
    def weights(self) -> dict[str, int]:
        """The last decision."""
        return {name: node.weight for name, node in self.plan.items()}

    def reason(self, name: str) -> str:
        """Return why a node has its weight."""
        return self.plan[name].reason

    def tick(self, times: int = 1, *, seconds: float = TICK_SECONDS) -> dict[str, int]:
        """Let the nodes work for some seconds with their present weights, then decide; return the new weights."""
        for _ in range(times):
            before = self.weights
            self.work(seconds)
            hosts = {name: f"127.0.0.{i}" for i, name in enumerate(self.nodes, 1)}
            pool: dict[str, Any] = {
                "policy": "capacity",
                "nodes": [
                    {"name": name, "host": host, "capacity": self.capacities.get(name, 1)}
                    for name, host in hosts.items()
                ],
            }
            samples = {name: self.sample(node, hosts[name]) for name, node in self.nodes.items()}
            self.now += seconds
            settings = config(pool=pool, policies={"capacity": self.rules}, nginx=self.nginx)
            plans, self.memory = decide(settings, samples, self.memory, self.drained, self.now, applied=self.applied)
            self.plan = {node.name: node for node in plans[0].nodes}
            self.moves += before != self.weights and bool(before)
        return self.weights

    def work(self, seconds: float) -> None:
        """Spread the requests and let the counters grow."""
        decided = self.weights or dict.fromkeys(self.nodes, 1)
        weights = {name: weight * self.ramps.get(name, 1) for name, weight in decided.items()}
        for name, node in self.nodes.items():
            share = self.requests * weights.get(name, 0) / sum(weights.values())
            node.requests = (share + node.hidden) * self.jitter()
            per_engine = node.requests / node.engines
            tokens = node.fast / (1 + per_engine / BATCH) * self.jitter() * node.requests * seconds
            node.tokens += tokens * node.claims
            node.finished += tokens * node.claims / TOKENS
            node.running_seconds += node.requests * seconds

    def jitter(self) -> float:
        """Return a factor within the noise."""
        return 1 + self.random.uniform(-self.noise, self.noise)

    def sample(self, node: Engine, host: str) -> Sample:
        """Return the sample of a node's scrape."""
        if node.fault:
            return dataclasses.replace(node.fault, address=host)
        running, tokens = (7, 7) if node.frozen else (round(node.requests), round(node.tokens))
        has_times = node.counts and node.times and not node.frozen
        running_seconds = node.running_seconds * (0.01 if node.hides else 1)
        return good(
            host,
            running=0 if node.hides else running,
            kv_cache_usage=node.kv,
            engines=node.engines,
            awake=node.awake,
            generation_tokens=tokens if node.counts else None,
            finished=round(node.finished) if node.counts and not node.frozen else None,
            token_gaps=tokens if has_times else None,
            token_gap_seconds=running_seconds if has_times else None,
        )
