"""What a running node is worth to the policy `capacity`, where two gauges in ten seconds mislead.

The engines here finish requests one by one, so their gauges vary as those of real engines do.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.unit.samples import config, good
from vllm_lb.decide import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_lb.memory import NodeMemory
    from vllm_lb.observation import Sample

TICK_SECONDS = 10
STEP_SECONDS = 0.1
ROOM = 16  # requests in a batch
BATCH = 40  # with so many requests, each is half as fast as a single one
FAST = 40.0  # tokens per second of a single request


@dataclass
class Engine:
    """A node with requests, each of which is so many tokens."""

    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    tokens: float = 0.0
    running_seconds: float = 0.0
    finished: int = 0

    @property
    def requests(self) -> int:
        """All its requests."""
        return len(self.running) + len(self.waiting)

    def work(self) -> None:
        """Generate for a step, then fill the batch again."""
        count = len(self.running)
        tokens = FAST / (1 + count / BATCH) * STEP_SECONDS
        self.tokens += tokens * count
        self.running_seconds += STEP_SECONDS * count
        self.running = [left - tokens for left in self.running if left > tokens]
        self.finished += count - len(self.running)
        while self.waiting and len(self.running) < ROOM:
            self.running.append(self.waiting.pop(0))

    def sample(self, address: str) -> Sample:
        """Return what a scrape finds now."""
        return good(
            address,
            kv_cache_usage=0.02 * len(self.running),
            running=len(self.running),
            waiting=len(self.waiting),
            generation_tokens=round(self.tokens),
            finished=self.finished,
            token_gaps=round(self.tokens),
            token_gap_seconds=self.running_seconds,
        )


class Fleet:
    """Two engines, `a` and `b`, that are weighed every ten seconds."""

    def __init__(self, seed: int = 1, *, started: Mapping[str, int] | None = None) -> None:
        """Start idle; with `started`, as if the nodes had had these weights for long."""
        self.engines = {"a": Engine(), "b": Engine()}
        self.random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self.weights = {"a": 100, "b": 100}
        self.moves = 0
        self.now = 1000.0
        self.memory: dict[str, NodeMemory] = {}
        if started:
            self.tick(lambda _second: None)
            for name, weight in started.items():
                was = self.memory[name]
                assert was.learned
                learned = dataclasses.replace(was.learned, earned_weight=weight)
                self.memory[name] = dataclasses.replace(was, weight=weight, learned=learned)
            self.weights = dict(started)

    def tick(self, arrive: Callable[[float], None]) -> dict[str, int]:
        """Let requests arrive in each step of ten seconds, then decide; return the weights."""
        for step in range(round(TICK_SECONDS / STEP_SECONDS)):
            arrive(step * STEP_SECONDS)
            for engine in self.engines.values():
                engine.work()
        self.now += TICK_SECONDS
        samples = {name: engine.sample(f"127.0.0.{i}") for i, (name, engine) in enumerate(self.engines.items(), 1)}
        settings = config(*self.engines, pool={"policy": "capacity"})
        plans, self.memory = decide(settings, samples, self.memory, set(), self.now)
        before, self.weights = self.weights, {node.name: node.weight for node in plans[0].nodes}
        self.moves += before != self.weights
        return self.weights

    def is_due(self, per_second: float) -> bool:
        """Tell whether something happens in this step that happens so often on average."""
        return self.random.random() < per_second * STEP_SECONDS

    def fill(self, name: str, requests: int, tokens: float) -> None:
        """Keep a node at so many requests, which nginx does not see."""
        engine = self.engines[name]
        engine.waiting += [tokens] * (requests - engine.requests)


def test_an_overloaded_node_beside_one_whose_short_requests_no_gauge_shows() -> None:
    fleet = Fleet()

    def arrive(second: float) -> None:
        fleet.fill("a", ROOM + 10, 400)
        if second < TICK_SECONDS - 1 and fleet.is_due(4):  # 36 in a tick, all finished when it ends
            fleet.engines["b"].waiting.append(20)

    for _ in range(5):
        fleet.tick(arrive)
    assert fleet.weights["a"] <= 50, "within five ticks"
    for _ in range(25):
        assert fleet.tick(arrive)["a"] <= 50
        assert fleet.weights["b"] == 100
    assert fleet.engines["b"].requests == 0
    assert fleet.moves <= 3


@pytest.mark.parametrize("when", ["at the scrape", "at any time"])
@pytest.mark.parametrize("seed", range(5))
def test_an_overloaded_node_does_not_rise_beside_one_that_gets_bursts(seed: int, when: str) -> None:
    fleet = Fleet(seed, started={"a": 30, "b": 100})

    def arrive(second: float) -> None:
        fleet.fill("a", ROOM + 10, 400)
        is_due = 0 <= second - 9.7 < STEP_SECONDS if when == "at the scrape" else fleet.is_due(0.3)
        if is_due:  # more than a batch, done within two seconds
            fleet.engines["b"].waiting += [10] * 40

    for _ in range(60):
        assert fleet.tick(arrive)["a"] <= 30
        assert fleet.weights["b"] == 100


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("per_second", "tokens"), [(12, 40), (3, 160)], ids=["short requests", "long requests"])
def test_equal_engines_are_left_alone(per_second: float, tokens: float, seed: int) -> None:
    fleet = Fleet(seed)

    def arrive(_second: float) -> None:
        if fleet.is_due(per_second / 2):
            for engine in fleet.random.choices([*fleet.engines.values()], [*fleet.weights.values()], k=2):
                engine.waiting.append(fleet.random.expovariate(1 / tokens))

    for _ in range(454):
        fleet.tick(arrive)
    assert (fleet.moves, fleet.weights) == (0, {"a": 100, "b": 100})
