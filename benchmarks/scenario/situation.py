"""What a scenario is: a fleet, a workload, and events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import workload
from benchmarks.scenario.engines import ENGINE
from benchmarks.scenario.kinds import KINDS

if TYPE_CHECKING:
    from benchmarks.scenario.kinds import Kind
    from benchmarks.workload import Call
    from simulator.engine_config import EngineConfig

NODES = 4
INTERVAL_SECONDS = 10.0
HIDDEN_CONVERSATIONS = 1 << 32  # their numbers begin here: they share nothing with those that pass the proxy
# The Lua of the balancer `work`.
LUA = Path(__file__).resolve().parents[2] / "roles" / "nginx_ingress" / "files" / "lua"
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
        load: arrivals as a share of the knee of the whole fleet at its speeds, with its engine and its workload.
        speeds: of the nodes, as a factor; also what the operator knows as `vllm_capacity`.
        seconds: how long requests arrive.
        warm_up: requests that arrive before this do not count.
        events: in order of time.
        hidden: pairs of a node's index, and the load that reaches it without passing the proxy, as a share of its knee.
        kind: the workload, a key of KINDS.
        engine: of every node.
        ingresses: how many there are; each counts only its own requests, and a conversation keeps to one.
        metrics_only: only contestants that read the nodes' metrics or change weights run in it.
        virtual_only: it has too many nodes for one machine, or several ingresses, so it runs in virtual time alone.
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
    engine: EngineConfig = ENGINE
    ingresses: int = 1
    metrics_only: bool = False
    virtual_only: bool = False

    @property
    def workload(self) -> Kind:
        """The kind of workload."""
        return KINDS[self.kind]

    @property
    def rate(self) -> float:
        """Requests a second through the proxy."""
        return self.load * self.workload.knee(self.engine) * sum(self.speeds)

    def calls(self, seed: int, trace: Path | None = None) -> list[Call]:
        """Draw the requests, or take those of a trace; the same for every contestant.

        Requests that are longer than an engine takes are left out: a node would refuse them.
        """
        if trace and self.workload.traced:
            calls = workload.read_trace(trace, self.rate, self.seconds)
        else:
            calls = self.workload.draw(self.rate, self.seconds, seed)
        longest = self.engine.longest_request
        return [call for call in calls if call.prompt_tokens + call.output_tokens <= longest]

    def hidden_calls(self, seed: int) -> list[tuple[int, Call]]:
        """Draw the requests that do not pass the proxy, each with the index of its node, in order of time."""
        knee = KINDS["azure"].knee(self.engine)
        found = [
            (node, replace(call, conversation=HIDDEN_CONVERSATIONS + call.conversation))
            for node, share in self.hidden
            for call in workload.azure(share * knee * self.speeds[node], self.seconds, 1000 * (seed + 1) + node)
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
