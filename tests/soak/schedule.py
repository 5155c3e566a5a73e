"""The faults of the soak and their times, drawn from the seed before it starts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.soak.stand_in import BIG_HEADERS, EARLY_ANSWER, LIAR, NEGATIVE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Each kind of fault with the faults of the simulator that make it.
Kinds = dict[str, dict[str, dict[str, Any]]]

# An answer that comes at once and is an error: a dead engine, a wrong key, another model. Nobody is sent elsewhere.
FAST_ERRORS: Kinds = {f"fast {code}": {"status": {"code": code}} for code in (401, 403, 404, 429, 500)}
ANSWERS: Kinds = FAST_ERRORS | {
    "full": {"status": {"code": 503}},
    "hang": {"hang": {}},
    "slow drip": {"slow_drip": {}},
    "wrong content": {"wrong_content": {}},
    "close": {"close": {}},
}
METRICS_ALONE: Kinds = ANSWERS | {
    name: {name: {}} for name in ("nan", "frozen", "counter_reset", "unset_gauges", "no_stats", "openmetrics")
}
# What a dying vLLM answers to each request, while /metrics may be well.
DYING: Kinds = {"draining": {"draining": {}}, "dead engine": {"engine_dead": {}}}
DROP = "dropped packets"  # the port is closed, and then the test takes it: see tests/packets.py
STAND_INS = (EARLY_ANSWER, BIG_HEADERS, NEGATIVE, LIAR)  # a stand-in takes the port: see stand_in.py
COMMENTS = "comments before output"
# With these faults no request may fail, except those under way when a stand-in comes or goes.
HARMLESS = (BIG_HEADERS, NEGATIVE, LIAR, COMMENTS)
SERVICE: Kinds = {
    **ANSWERS,
    **DYING,
    "refuse": {"refuse": {}},
    DROP: {"refuse": {}},
    **{kind: {"refuse": {}} for kind in STAND_INS},
    "hung engine": {"engine_hang": {}},
    "few places": {"admission_limit": {"requests": 2}},
    COMMENTS: {"sse_keep_alive": {"milliseconds": 20}},
    "sleep": {},
}
# Faults that all nodes have at once, each with the ticks that it lasts: 3 s or 2 s.
EVERYWHERE: Mapping[str, tuple[dict[str, dict[str, Any]], int]] = {
    "all reset": ({"refuse": {}}, 6),
    "all full": ({"admission_limit": {"requests": 0}}, 4),
    "all fail alike": ({"status": {"code": 500, "scope": "api"}}, 4),
}
TIMES_EVERYWHERE = 2  # how often each of them happens
# Faults of the script's files, of nginx and by operators, each with how many ticks it lasts.
BALANCER = {
    "kill": range(1, 2),
    "edit": range(1, 2),
    "empty": range(1, 2),
    "truncate": range(1, 2),
    "foreign reload": range(1, 2),
    "foreign fault": range(1, 6),
    "lock": range(1, 2),
    "drain": range(3, 15),
    "remove": range(3, 15),
}
MEMBERSHIP = {"drain", "remove"}  # one at a time
FILES = ("memory.json", "plan.json", "status.json")
NODE_CHANCE, BALANCER_CHANCE = 0.4, 0.6  # per tick; the second one if no fault of a node begins


@dataclass(frozen=True, eq=False)
class Event:
    """One fault, from before one tick to before another."""

    what: str
    begins: int
    ends: int
    node: str = ""
    out: bool = False  # True: requests to the node may fail
    begin: dict[str, Any] = field(default_factory=dict)  # the change for the node's control endpoint
    end: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    moment: float = 0.0  # when a killed tick dies: 0 at once, 1 when most have ended

    def __str__(self) -> str:
        """Return it in one line."""
        details = " ".join(filter(None, (self.node, self.file, str(self.begin or ""))))
        return f"{self.what} {details} before ticks {self.begins} to {self.ends}"


class Bag:
    """Kinds in a random order: each comes once before one comes again, so a soak has them all."""

    def __init__(self, chance: random.Random, kinds: Sequence[str]) -> None:
        """Fill the bag."""
        self._chance, self._kinds = chance, kinds
        self._left: list[str] = []

    def draw(self) -> str:
        """Return the next kind."""
        if not self._left:
            self._left = self._chance.sample(self._kinds, len(self._kinds))
        return self._left.pop()


class Schedule:
    """Draws the events of a soak.

    A node has one fault at a time. At most half of the nodes are out of service at once, or all of them have the same
    fault. Faults of /metrics alone may hit all.
    """

    def __init__(self, seed: int, nodes: Sequence[str], ticks: int) -> None:
        """Prepare an empty schedule."""
        self.chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.nodes, self.ticks = nodes, ticks
        self.service = Bag(self.chance, list(SERVICE))
        self.metrics = Bag(self.chance, list(METRICS_ALONE))
        self.balancer = Bag(self.chance, list(BALANCER))
        self.everywhere = self._everywhere()

    def events(self) -> list[Event]:
        """Return the events in the order of their beginning."""
        events = list(self.everywhere)
        for tick in range(1, self.ticks):
            active = [event for event in events if event.begins <= tick < event.ends]
            free = sorted(set(self.nodes) - {event.node for event in active})
            may_go = sum(event.out for event in active) < len(self.nodes) // 2
            if self._ends(tick, 1) > tick and free and self.chance.random() < NODE_CHANCE:
                events += self._node_events(tick, free, may_go=may_go)
            elif self.chance.random() < BALANCER_CHANCE:
                events += self._balancer_events(tick, free if may_go else [], {each.what for each in active})
        return sorted(events, key=lambda event: event.begins)

    def _ends(self, tick: int, lasts: int) -> int:
        """Return when a fault ends that begins now: before all nodes have the next one, and before the soak ends."""
        coming = [event.begins for event in self.everywhere if event.begins >= tick]
        return min([tick + lasts, self.ticks, *coming])

    def _everywhere(self) -> list[Event]:
        """Return the faults that all nodes have at once, spread over the time."""
        kinds = self.chance.sample(list(EVERYWHERE) * TIMES_EVERYWHERE, len(EVERYWHERE) * TIMES_EVERYWHERE)
        apart = self.ticks // len(kinds)
        events = []
        for place, what in enumerate(kinds):
            faults, lasts = EVERYWHERE[what]
            tick = place * apart + self.chance.randint(apart // 4, apart - lasts - 2)
            events += [switched(what, tick, tick + lasts, node, faults, out=True) for node in self.nodes]
        return events

    def _node_events(self, tick: int, free: Sequence[str], *, may_go: bool) -> list[Event]:
        """Return a fault of one node, or a fault of /metrics of any number of nodes."""
        chance, ends = self.chance, self._ends(tick, self.chance.randint(2, 12))
        kind = chance.choice(("service", "service", "service", "metrics", "metrics", "speed"))
        if kind == "metrics":
            what = self.metrics.draw()
            faults = {name: settings | {"scope": "metrics"} for name, settings in METRICS_ALONE[what].items()}
            hit = chance.sample(free, chance.randint(1, len(free)))
            return [switched(what, tick, ends, node, faults) for node in hit]
        node = chance.choice(free)
        if kind == "speed":
            return [Event("speed", tick, ends, node, begin={"speed": 0.3}, end={"speed": 1})]
        if not may_go:
            return []
        what = self.service.draw()
        if what == "sleep":
            level = chance.choice((1, 2))
            return [Event("sleep", tick, ends, node, out=True, begin={"sleep": level}, end={"sleep": 0})]
        scope = {"scope": chance.choice(("both", "api"))} if what in ANSWERS else {}
        faults = {name: settings | scope for name, settings in SERVICE[what].items()}
        return [switched(what, tick, ends, node, faults, out=what not in HARMLESS)]

    def _balancer_events(self, tick: int, free: Sequence[str], active: set[str]) -> list[Event]:
        """Return a fault of the script's files, of nginx or of the operator, if it is possible beside those on."""
        chance, what = self.chance, self.balancer.draw()
        lasts = chance.choice(BALANCER[what])
        if what in active or (what in MEMBERSHIP and (active & MEMBERSHIP or not free)):
            return []
        if what in MEMBERSHIP:
            ends = self._ends(tick, lasts)
            return [Event(what, tick, ends, chance.choice(free), out=True)] if ends > tick else []
        file = chance.choice(FILES) if what == "truncate" else ""
        return [Event(what, tick, min(self.ticks, tick + lasts), file=file, moment=chance.random())]


def switched(
    what: str, begins: int, ends: int, node: str, faults: dict[str, dict[str, Any]], *, out: bool = False
) -> Event:
    """Return an event that switches faults of a node's simulator on, and off again."""
    return Event(what, begins, ends, node, out=out, begin={"faults": faults}, end={"faults": dict.fromkeys(faults)})
