"""The scenarios: a fleet, a workload, and events. The benchmarks in real and in virtual time run the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import workload
from simulator.engine_config import EngineConfig

if TYPE_CHECKING:
    from benchmarks.workload import Call

# Four of these engines serve the trace's 5.5 requests per second at three quarters of their knee. One computes about
# 4,500 prompt tokens per second, takes 30 ms and more for a step, and has room for 49,000 tokens.
ENGINE = EngineConfig(
    step_seconds=0.030,
    prefill_token_seconds=0.00022,
    decode_sequence_seconds=0.0003,
    num_blocks=3072,
    prefix_caching=True,
)
# The knee: requests per second and node of full speed up to which 95 % of them are good (summary.py) with
# join-the-shortest-queue without delay. `python -m benchmarks knee` measures it.
KNEE = 1.83
NODES = 4
INTERVAL_SECONDS = 10.0
# The Lua of the balancer `work`.
LUA = Path(__file__).resolve().parents[1] / "roles" / "nginx_ingress" / "files" / "lua"
# Settings of the script with which it publishes every change at once, as the article's script does.
NO_RELOAD_LIMITS = {
    "min_reload_interval_seconds": 0.0,
    "min_weight_change_ratio": 0.0,
    "max_draining_generations": 1000,
}


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a node.

    Attributes:
        at: seconds since the start.
        node: its index.
        what: "speed", to a factor; "down" or "up": its process ends or starts; "blind": its metrics answer with an
            error; "frozen": its metrics stay as they are.
        value: of "speed" the factor, of "blind" and "frozen" 1 to begin and 0 to end, else 0.
    """

    at: float
    node: int
    what: str
    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One situation to measure in. Times are seconds of the model.

    Attributes:
        name: the scenario's name in tables and for `--scenarios`.
        title: a description in one line.
        load: arrivals as a share of the knee of the whole fleet at its speeds.
        speeds: of the nodes, as a factor; also what the operator knows as `vllm_capacity`.
        seconds: how long requests arrive.
        warm_up: requests that arrive before this do not count.
        events: in order of time.
        hidden: pairs of a node's index, and the load that reaches it without passing the proxy, as a share of its knee.
        kind: azure, bursty, multi-turn or long: the workload.
        metrics_only: only contestants that read the nodes' metrics or change weights run in it.
    """

    name: str
    title: str
    load: float
    speeds: tuple[float, ...] = (1.0,) * NODES
    seconds: float = 600.0
    warm_up: float = 120.0
    events: tuple[Event, ...] = ()
    hidden: tuple[tuple[int, float], ...] = ()
    kind: str = "azure"
    metrics_only: bool = False

    @property
    def rate(self) -> float:
        """Requests a second through the proxy."""
        return self.load * KNEE * sum(self.speeds)

    def calls(self, seed: int, trace: Path | None = None) -> list[Call]:
        """Draw the requests, or take those of a trace; the same for every contestant."""
        if self.kind == "multi-turn":
            return workload.multi_turn(self.rate, self.seconds, seed)
        if self.kind == "long":
            return workload.long_streams(self.rate, self.seconds, seed)
        if self.kind == "bursty":
            return workload.azure(self.rate, self.seconds, seed, cv=13)
        if trace:
            return workload.read_trace(trace, self.rate, self.seconds)
        return workload.azure(self.rate, self.seconds, seed)

    def hidden_calls(self, seed: int) -> list[tuple[int, Call]]:
        """Draw the requests that do not pass the proxy, each with the index of its node, in order of time."""
        found = [
            (node, call)
            for node, share in self.hidden
            for call in workload.azure(share * KNEE * self.speeds[node], self.seconds, 1000 * (seed + 1) + node)
        ]
        return sorted(found, key=lambda each: each[1].at)

    def shortened(self, factor: float) -> Scenario:
        """Return the same scenario with all times multiplied by a factor."""
        events = tuple(replace(event, at=event.at * factor) for event in self.events)
        return replace(self, seconds=self.seconds * factor, warm_up=self.warm_up * factor, events=events)

    @property
    def slowed(self) -> tuple[int, float, float] | None:
        """Return node, begin and end of the time for which a node is slow; None if none is."""
        changes = [event for event in self.events if event.what == "speed"]
        return (changes[0].node, changes[0].at, changes[1].at) if len(changes) > 1 else None


FAST_AND_SLOW = (1.0, 1.0, 0.4, 0.4)
SCENARIOS = (
    Scenario(name="equal-60", title="four equal nodes at 60 % of the knee", load=0.60, seconds=300, warm_up=60),
    Scenario(name="equal-75", title="four equal nodes at 75 % of the knee", load=0.75, seconds=400, warm_up=80),
    Scenario(name="equal-90", title="four equal nodes at 90 % of the knee", load=0.90, seconds=450, warm_up=90),
    Scenario(name="unequal", title="two fast and two slow nodes (0.4x), 75 %", load=0.75, speeds=FAST_AND_SLOW),
    Scenario(
        name="slowed",
        title="one node three times slower for a while, 65 %",
        load=0.65,
        events=(Event(180, 1, "speed", 1 / 3), Event(420, 1, "speed", 1.0)),
    ),
    Scenario(
        name="hidden",
        title="traffic the proxy cannot see on one node, 60 % + 3/4 of a node",
        load=0.60,
        hidden=((2, 0.75),),
    ),
    Scenario(
        name="restart",
        title="one node restarted, 60 %",
        load=0.60,
        seconds=450,
        warm_up=90,
        events=(Event(180, 1, "down"), Event(240, 1, "up")),
    ),
    Scenario(name="bursty", title="arrivals with a CV of 13, 60 %", load=0.60, seconds=450, warm_up=90, kind="bursty"),
    Scenario(
        name="multi-turn",
        title="chats with a growing shared prefix, 90 %",
        load=0.90,
        seconds=300,
        warm_up=60,
        kind="multi-turn",
    ),
    Scenario(
        name="scrape-loss",
        title="one node's metrics fail for two minutes, unequal nodes, 75 %",
        load=0.75,
        speeds=FAST_AND_SLOW,
        events=(Event(200, 2, "blind", 1), Event(320, 2, "blind", 0)),
        metrics_only=True,
    ),
    Scenario(
        name="frozen",
        title="one node's metrics stand still, unequal nodes, 75 %",
        load=0.75,
        speeds=FAST_AND_SLOW,
        events=(Event(200, 0, "frozen", 1), Event(500, 0, "frozen", 0)),
        metrics_only=True,
    ),
    Scenario(
        name="long-streams",
        title="answers of a minute and more while a node slows down and recovers, 65 %",
        load=0.65,
        kind="long",
        events=(Event(180, 1, "speed", 1 / 3), Event(420, 1, "speed", 1.0)),
        metrics_only=True,
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
