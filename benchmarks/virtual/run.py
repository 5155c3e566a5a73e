"""One run in virtual time: events in the order of their times, on a clock that jumps from one to the next.

Everything random comes from the seed, so a run repeats exactly, and every contestant gets the same requests.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.scenario import INTERVAL_SECONDS
from benchmarks.summary import Outcome, Summary, seconds_until_halved, share_at_home, summarise
from benchmarks.virtual.node import VirtualNode
from simulator.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.scenario import Event, Scenario
    from benchmarks.virtual.contestant import Contestant
    from benchmarks.workload import Call
    from simulator.engine_records import Request

MAX_TRIES = 3  # the role's default for proxy_next_upstream_tries


@dataclass(slots=True)
class Sent:
    """A request under way that went through a contestant, one of several ingresses; `ticket` is the contestant's."""

    ingress: Contestant
    call: Call
    outcome: Outcome
    node: int
    ticket: Any


@dataclass(slots=True)
class Run:
    """One contestant in one scenario with one seed.

    Attributes:
        contestant: plays no part itself: each ingress is a copy of it.
        ingresses, nodes, outcomes: filled by play(); one outcome for each call.
        now: seconds since the start.
    """

    contestant: Contestant
    scenario: Scenario
    seed: int
    calls: Sequence[Call]
    ingresses: list[Contestant] = field(default_factory=list)
    nodes: list[VirtualNode] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    now: float = 0.0
    _events: list[tuple[float, int, Callable[..., None], Any]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _sent: dict[Request, Sent] = field(default_factory=dict)

    def play(self) -> Summary:
        """Play to the end of the last request, and return the summary."""
        scenario = self.scenario
        self.nodes = [VirtualNode(i, scenario.engine, speed) for i, speed in enumerate(scenario.speeds)]
        self._begin_ingresses()
        for call in self.calls:
            self._at(call.at, self._arrive, call)
        for hidden in scenario.hidden_calls(self.seed):
            self._at(hidden[1].at, self._arrive_hidden, hidden)
        for event in scenario.events:
            self._at(event.at, self._happen, event)
        while self._events:
            self.now, _, what, value = heapq.heappop(self._events)
            what(value)
        counted = [outcome for outcome in self.outcomes if outcome.at >= scenario.warm_up]
        summary = summarise(counted)
        summary.preemptions = sum(n.engine.counters.preemptions + n.lost_preemptions for n in self.nodes)
        self.ingresses[0].report(summary)
        summary.reloads_per_hour *= 3600 / scenario.seconds
        summary.at_home = share_at_home(self.outcomes, scenario.warm_up)
        if scenario.slowed:
            summary.halved_after = seconds_until_halved(self.outcomes, *scenario.slowed)
        return summary

    def _at(self, when: float, what: Callable[..., None], value: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, value))

    def _begin_ingresses(self) -> None:
        """Begin each ingress, and start its timer; the timers of several are spread over an interval."""
        count = self.scenario.ingresses
        for number in range(count):
            ingress = copy.copy(self.contestant)
            ingress.ingress = number
            seed = f"contestant {self.seed}" + (f" {number}" if number else "")
            ingress.begin(self.nodes, self.scenario, random.Random(seed))
            ingress.tick(0.0)
            self.ingresses.append(ingress)
            self._at((number / count or 1) * INTERVAL_SECONDS, self._tick, ingress)

    def _tick(self, ingress: Contestant) -> None:
        ingress.tick(self.now)
        if self.now < self.scenario.seconds:
            self._at(self.now + INTERVAL_SECONDS, self._tick, ingress)

    def _ingress_of(self, call: Call) -> Contestant:
        """Return the ingress that a call's conversation keeps to."""
        if len(self.ingresses) == 1:
            return self.ingresses[0]
        return random.Random(call.conversation).choice(self.ingresses)

    def _arrive(self, call: Call) -> None:
        outcome = Outcome(call.at, problem="failed", conversation=call.conversation)
        self.outcomes.append(outcome)
        ingress = self._ingress_of(call)
        tried: set[int] = set()
        while len(tried) < MAX_TRIES:
            choice = ingress.choose(call, tried, self.now)
            if choice is None:
                return
            node, ticket = choice
            if self.nodes[node].up:
                outcome.node, outcome.problem = node, None
                self._submit(self.nodes[node], call, Sent(ingress, call, outcome, node, ticket))
                return
            ingress.ended(ticket, self.now, failed=True)
            tried.add(node)

    def _arrive_hidden(self, hidden: tuple[int, Call]) -> None:
        if self.nodes[hidden[0]].up:
            self._submit(self.nodes[hidden[0]], hidden[1], None)

    def _submit(self, node: VirtualNode, call: Call, sent: Sent | None) -> None:
        request = node.request(call)
        if sent:
            self._sent[request] = sent
        node.engine.submit(request, self.now)
        if not node.busy:
            self._begin_step(node)

    def _begin_step(self, node: VirtualNode) -> None:
        ends_at = node.engine.begin(self.now)
        node.busy = ends_at is not None
        if ends_at is not None:
            self._at(ends_at, self._end_step, (node, node.engine))

    def _end_step(self, step: tuple[VirtualNode, Engine]) -> None:
        node, engine = step
        if engine is not node.engine:  # the node was restarted during this step
            return
        report = engine.finish()
        for request in report.advanced:
            if request.generated > 1:
                node.token_gaps += 1
                node.token_gap_seconds += request.token_gap
            elif (sent := self._sent.get(request)) and sent.call.streamed:
                sent.ingress.first_token(sent.ticket, self.now)
        for request in report.finished:
            node.finished += 1
            self._finish(request)
        self._begin_step(node)

    def _finish(self, request: Request) -> None:
        sent = self._sent.pop(request, None)
        if sent is None or request.first_token_at is None or request.token_at is None:
            return
        if not sent.call.streamed:
            sent.outcome.whole_answer, sent.outcome.tokens = request.token_at - sent.call.at, request.generated
        else:
            sent.outcome.first_token = request.first_token_at - sent.call.at
            if request.generated > 1:
                sent.outcome.per_token = (request.token_at - request.first_token_at) / (request.generated - 1)
        sent.ingress.ended(sent.ticket, self.now, failed=False)

    def _happen(self, event: Event) -> None:
        node = self.nodes[event.node]
        match event.what:
            case "speed":
                node.engine.speed = event.value
            case "blind":
                node.blind = bool(event.value)
            case "frozen":
                node.set_frozen(frozen=bool(event.value))
            case "down":
                self._stop(node)
            case "up":
                node.up = True

    def _stop(self, node: VirtualNode) -> None:
        """End a node's process: its requests are cut, and its counters start at zero."""
        for request in [r for r, sent in self._sent.items() if sent.node == node.index]:
            sent = self._sent.pop(request)
            sent.outcome.problem = "cut"
            sent.ingress.ended(sent.ticket, self.now, failed=True)
        node.lost_preemptions += node.engine.counters.preemptions
        node.engine = Engine(node.engine.config, node.engine.speed)
        node.finished = node.token_gaps = 0
        node.token_gap_seconds = 0.0
        node.busy = node.up = False


def play(contestant: Contestant, scenario: Scenario, seed: int, trace: Path | None = None) -> Summary:
    """Run one contestant through a scenario, with the requests of a trace if one is given."""
    return Run(contestant, scenario, seed, scenario.calls(seed, trace)).play()
