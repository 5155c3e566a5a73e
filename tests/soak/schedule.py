"""The faults of the soak and their times, drawn from the seed before it starts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Faults of answers, as the simulator names them, each with the settings it may have.
ANSWERS: dict[str, tuple[dict[str, Any], ...]] = {
    "hang": ({},),
    "slow_drip": ({},),
    "status": tuple({"code": code} for code in (401, 403, 429, 500, 503)),
    "wrong_content": ({},),
    "close": ({},),
}
METRICS_ALONE = (*ANSWERS, "nan", "frozen", "counter_reset")
SERVICE = (*ANSWERS, "refuse", "sleep")
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


def make_schedule(seed: int, nodes: Sequence[str], ticks: int) -> list[Event]:
    """Return the events in the order of their beginning.

    A node has one at a time. At most half of the nodes are out of service at once; faults of /metrics
    alone may hit all.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    events: list[Event] = []
    for tick in range(1, ticks):
        active = [event for event in events if event.ends > tick]
        free = sorted(set(nodes) - {event.node for event in active})
        may_go = sum(event.out for event in active) < len(nodes) // 2
        if free and chance.random() < NODE_CHANCE:
            events += node_events(chance, tick, ticks, free, may_go=may_go)
        elif chance.random() < BALANCER_CHANCE:
            events += balancer_events(chance, tick, ticks, free if may_go else [], {each.what for each in active})
    return events


def node_events(chance: random.Random, tick: int, ticks: int, free: Sequence[str], *, may_go: bool) -> list[Event]:
    """Return a fault of one node, or a fault of /metrics of any number of nodes."""
    ends = min(ticks, tick + chance.randint(2, 12))
    kind = chance.choice(("service", "service", "service", "metrics", "metrics", "speed"))
    if kind == "metrics":
        what = chance.choice(METRICS_ALONE)
        begin = {"faults": {what: {"scope": "metrics"} | chance.choice(ANSWERS.get(what, ({},)))}}
        hit = chance.sample(free, chance.randint(1, len(free)))
        return [Event(what, tick, ends, node, begin=begin, end={"faults": {what: None}}) for node in hit]
    node = chance.choice(free)
    if kind == "speed":
        return [Event("speed", tick, ends, node, begin={"speed": 0.3}, end={"speed": 1})]
    if not may_go:
        return []
    what = chance.choice(SERVICE)
    if what == "sleep":
        return [Event("sleep", tick, ends, node, out=True, begin={"sleep": chance.choice((1, 2))}, end={"sleep": 0})]
    settings = chance.choice(ANSWERS.get(what, ({},)))
    if what in ANSWERS:
        settings = settings | {"scope": chance.choice(("both", "api"))}
    return [Event(what, tick, ends, node, out=True, begin={"faults": {what: settings}}, end={"faults": {what: None}})]


def balancer_events(chance: random.Random, tick: int, ticks: int, free: Sequence[str], active: set[str]) -> list[Event]:
    """Return a fault of the script's files, of nginx or of the operator, if it is possible beside those that are on."""
    what = chance.choice(list(BALANCER))
    ends = min(ticks, tick + chance.choice(BALANCER[what]))
    if what in active or (what in MEMBERSHIP and (active & MEMBERSHIP or not free)):
        return []
    if what in MEMBERSHIP:
        return [Event(what, tick, ends, chance.choice(free), out=True)]
    return [Event(what, tick, ends, file=chance.choice(FILES) if what == "truncate" else "", moment=chance.random())]
