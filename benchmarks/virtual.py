"""Tier 1: a run in virtual time. The nodes are the simulator's engines, nginx is modelled, decisions are the script's.

Everything is drawn from the seed: a run repeats exactly, and every contestant meets the same requests.
"""

from __future__ import annotations

import abc
import functools
import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import lupa.luajit21 as lupa

import vllm_nginx_lb as lb
from benchmarks import workload
from benchmarks.figures import Figures, Outcome, seconds_until_halved, summarise
from benchmarks.nginx_model import Nginx, Ticket
from benchmarks.scenario import (
    ENGINE,
    INTERVAL_SECONDS,
    LUA,
    MAX_REQUEST_BYTES,
    NO_RATION,
    STREAM_BYTES,
    Scenario,
)
from simulator.engine import Engine, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.workload import Call

MAX_TRIES = 3  # the role's default for proxy_next_upstream_tries


class VirtualNode:
    """One node: an engine, and what its metrics say of it."""

    def __init__(self, index: int, speed: float) -> None:
        """Start idle."""
        self.index = index
        self.engine = Engine(ENGINE, speed)
        self.busy = False
        self.up = True
        self.blind = False
        self.frozen: lb.Sample | None = None
        self.address = f"127.0.0.{index + 2}"
        self.lost_preemptions = 0
        self.finished = 0

    def sample(self) -> lb.Sample:
        """Scrape its metrics, as the script would."""
        if not self.up:
            return lb.Sample(self.address, 0.001, error="connection refused", answered=False)
        if self.blind:
            return lb.Sample(self.address, 0.001, error="HTTP 500")
        return self.frozen or self._read()

    def _read(self) -> lb.Sample:
        engine, counters = self.engine, self.engine.counters
        reading = lb.Reading(
            kv_cache_usage=engine.kv_cache_usage,
            waiting=len(engine.waiting),
            running=len(engine.running),
            preemptions=counters.preemptions,
            engines=1,
            awake=True,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            finished=self.finished,
        )
        return lb.Sample(self.address, 0.02, reading)

    def set_frozen(self, *, frozen: bool) -> None:
        """Let its metrics stand still, or not."""
        self.frozen = self._read() if frozen else None

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens that are not computed yet."""
        engine = self.engine
        return sum(r.prompt_tokens - min(r.computed, r.prompt_tokens) for r in (*engine.running, *engine.waiting))

    @property
    def load(self) -> int:
        """Requests it has."""
        return len(self.engine.running) + len(self.engine.waiting)


class Contestant(abc.ABC):
    """One way to choose nodes."""

    name: str

    @abc.abstractmethod
    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start anew, before the first request."""

    @abc.abstractmethod
    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Any] | None:
        """Choose a node for a request, and a ticket for its end; None if there is none left."""

    def free(self, ticket: Any, now: float, *, failed: bool) -> None:
        """Hear that a request has ended."""
        del ticket, now, failed

    def first_token(self, ticket: Any) -> None:
        """Hear that a request has its first token."""
        del ticket

    def tick(self, now: float) -> None:
        """Do what is done every ten seconds."""
        del now

    def report(self, figures: Figures) -> None:
        """Add what only it knows to the figures."""
        del figures


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

    def free(self, ticket: Ticket, now: float, *, failed: bool) -> None:
        """Count the end of a request."""
        self.nginx.free(ticket, now, failed=failed)


class Balanced(StaticNginx):
    """Nginx with weights by the script: its decide and its ration, called as a tick calls them."""

    def __init__(
        self, name: str, policy: str, *, known: bool = False, ration: dict[str, Any] | None = None, **policies: Any
    ) -> None:
        """Decide by a policy of the script's.

        `known`: the operator has set each node's capacity. `ration` overrides settings of nginx, `policies` those of
        the policies.
        """
        super().__init__(name, "least_conn")
        self.policy, self.known, self.ration, self.policies = policy, known, ration or {}, policies

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start nginx with equal weights; the first tick follows at once."""
        super().begin(nodes, scenario, chance)
        settings = {
            "nginx": self.ration,
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

    def report(self, figures: Figures) -> None:
        """Add reloads and draining generations. The first reload only replaces the seed."""
        figures.peak_draining = self.peak_draining
        figures.reloads_per_hour = float(max(0, self.nginx.reloads - 1))


class OutstandingWork(Balanced):
    """The balancer `work`: its own Lua chooses, with the weights of the script, which it has at once."""

    def __init__(self, name: str, policy: str, *, stream_bytes: float, **settings: Any) -> None:
        """Weigh by a policy; an open stream counts as so many bytes of prompt."""
        super().__init__(name, policy, ration=NO_RATION, **settings)
        self.stream_bytes = stream_bytes

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start with nothing under way."""
        super().begin(nodes, scenario, chance)
        self.pending, self.streams, self.chance = [0.0] * len(nodes), [0] * len(nodes), chance

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Any] | None:
        """Let Lua choose, and count the request."""
        del now
        size = float(min(MAX_REQUEST_BYTES, call.prompt_tokens * workload.CHARACTERS_PER_TOKEN))
        load = [each for pair in zip(self.nginx.weights, self.pending, self.streams, strict=True) for each in pair]
        usable = [index not in tried for index in range(len(self.nodes))]
        node = lua_choose()(size, self.stream_bytes, self.chance.randint, *load, *usable)
        if node is None:
            return None
        self.pending[node] += size
        self.streams[node] += 1
        return node, [node, size]

    def first_token(self, ticket: Any) -> None:
        """Count the prompt as done."""
        self.pending[ticket[0]] -= ticket[1]
        ticket[1] = 0.0

    def free(self, ticket: Any, now: float, *, failed: bool) -> None:
        """Count the request out."""
        del now, failed
        self.first_token(ticket)
        self.streams[ticket[0]] -= 1

    def report(self, figures: Figures) -> None:
        """Add nothing: new weights take no reload."""


# Lists of Python's as arguments: for each node its weight, pending bytes and streams, then whether it may be taken.
CHOOSE = """
local choose = require "vllm_nginx_lb.choose"
return function(bytes, stream_bytes, randint, ...)
    local values, nodes, totals = { ... }, {}, {}
    local count = #values / 4
    for i = 1, count do
        nodes[i] = { capacity = values[3 * i - 2], slot = i - 1, usable = values[3 * count + i] }
        totals[2 * i - 2], totals[2 * i - 1] = values[3 * i - 1], values[3 * i]
    end
    local request, settings = { bytes = bytes, cached = {} }, { stream_bytes = stream_bytes, ingresses = 1 }
    local node = choose.best(nodes, totals, request, settings, function(node) return node.usable end,
        function(n) return randint(1, n) end)
    return node and node.slot
end
"""


@functools.cache
def lua_choose() -> Callable[..., int | None]:
    """Return CHOOSE as a function; no part of a contestant, because it cannot be handed to another process."""
    lua = lupa.LuaRuntime()
    lua.execute(f"package.path = '{LUA}/?.lua'")
    return cast("Callable[..., int | None]", lua.execute(CHOOSE))


def as_upstream(weights: Sequence[int]) -> str:
    """Return weights as the upstream file has them."""
    return "\n".join(f"server {i} {f'weight={weight}' if weight else 'down'};" for i, weight in enumerate(weights))


class Limit(Contestant):
    """A limit: knows the true state of every node at every moment, hidden requests too."""

    def __init__(self, name: str, cost: Callable[[VirtualNode], float]) -> None:
        """Choose the node with the least cost, ties at random."""
        self.name, self.cost = name, cost

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start."""
        del scenario
        self.nodes, self.chance = nodes, chance

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, None] | None:
        """Choose by the true state."""
        del call, now
        usable = [node for node in self.nodes if node.up and node.index not in tried]
        if not usable:
            return None
        return min(usable, key=lambda node: (self.cost(node), self.chance.random())).index, None


def queue_length(node: VirtualNode) -> float:
    """Return the requests of a node, per speed: fresh join-the-shortest-queue with known capacities."""
    return (node.load + 1) / node.engine.speed


def time_to_first_token(node: VirtualNode) -> float:
    """Return about how long a request would wait for its first token on a node: the oracle's cost."""
    decodes = len(node.engine.running)
    work = node.pending_tokens * ENGINE.prefill_token_seconds + ENGINE.step_seconds * (
        1 + node.pending_tokens / ENGINE.max_num_batched_tokens
    )
    return (work + decodes * (ENGINE.decode_sequence_seconds + 0.002)) / node.engine.speed


CONTESTANTS: tuple[Contestant, ...] = (
    StaticNginx("nginx-round-robin", "round_robin"),
    StaticNginx("nginx-least-conn-no-zone", "least_conn", zone=False),
    StaticNginx("nginx-least-conn", "least_conn"),
    StaticNginx("nginx-random-two", "random_two_least_conn"),
    Balanced("article", "stepped", ration=NO_RATION),
    Balanced("ours-stepped", "stepped"),
    Balanced("ours-capacity", "capacity"),
    Balanced("ours-static", "static", known=True),
    OutstandingWork("ours-work", "capacity", stream_bytes=STREAM_BYTES),
    Limit("limit-jsq", queue_length),
    Limit("limit-oracle", time_to_first_token),
)


@dataclass(slots=True)
class Sent:
    """A request under way."""

    call: Call
    outcome: Outcome
    node: int
    ticket: Any


@dataclass(slots=True)
class Run:
    """One contestant in one scenario with one seed."""

    contestant: Contestant
    scenario: Scenario
    seed: int
    calls: Sequence[Call]
    nodes: list[VirtualNode] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    now: float = 0.0
    _events: list[tuple[float, int, Callable[..., None], Any]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _sent: dict[Request, Sent] = field(default_factory=dict)

    def play(self) -> Figures:
        """Play it to the end of the last request, and return its figures."""
        scenario = self.scenario
        self.nodes = [VirtualNode(i, speed) for i, speed in enumerate(scenario.speeds)]
        self.contestant.begin(self.nodes, scenario, random.Random(f"contestant {self.seed}"))
        self._at(0.0, self._tick, None)
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
        figures = summarise(counted)
        figures.preemptions = sum(n.engine.counters.preemptions + n.lost_preemptions for n in self.nodes)
        self.contestant.report(figures)
        figures.reloads_per_hour *= 3600 / scenario.seconds
        if scenario.slowed:
            figures.halved_after = seconds_until_halved(self.outcomes, *scenario.slowed)
        return figures

    def _at(self, when: float, what: Callable[..., None], value: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, value))

    def _tick(self, _: None) -> None:
        self.contestant.tick(self.now)
        if self.now < self.scenario.seconds:
            self._at(self.now + INTERVAL_SECONDS, self._tick, None)

    def _arrive(self, call: Call) -> None:
        outcome = Outcome(call.at, problem="failed")
        self.outcomes.append(outcome)
        tried: set[int] = set()
        while len(tried) < MAX_TRIES:
            choice = self.contestant.choose(call, tried, self.now)
            if choice is None:
                return
            node, ticket = choice
            if self.nodes[node].up:
                outcome.node, outcome.problem = node, None
                self._submit(self.nodes[node], call, Sent(call, outcome, node, ticket))
                return
            self.contestant.free(ticket, self.now, failed=True)
            tried.add(node)

    def _arrive_hidden(self, hidden: tuple[int, Call]) -> None:
        if self.nodes[hidden[0]].up:
            self._submit(self.nodes[hidden[0]], hidden[1], None)

    def _submit(self, node: VirtualNode, call: Call, sent: Sent | None) -> None:
        request = Request("", call.prompt_tokens, call.output_tokens, call.prefix(ENGINE.block_size))
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
        if engine is not node.engine:  # the process it ran in has ended
            return
        report = engine.finish()
        for request in report.advanced:
            if request.generated == 1 and request in self._sent:
                self.contestant.first_token(self._sent[request].ticket)
        for request in report.finished:
            node.finished += 1
            self._finish(request)
        self._begin_step(node)

    def _finish(self, request: Request) -> None:
        sent = self._sent.pop(request, None)
        if sent is None or request.first_token_at is None or request.token_at is None:
            return
        sent.outcome.first_token = request.first_token_at - sent.call.at
        if request.generated > 1:
            sent.outcome.per_token = (request.token_at - request.first_token_at) / (request.generated - 1)
        self.contestant.free(sent.ticket, self.now, failed=False)

    def _happen(self, event: Any) -> None:
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
        """End a node's process: what it had is cut, and its counters start at zero."""
        for request in [r for r, sent in self._sent.items() if sent.node == node.index]:
            sent = self._sent.pop(request)
            sent.outcome.problem = "cut"
            self.contestant.free(sent.ticket, self.now, failed=True)
        node.lost_preemptions += node.engine.counters.preemptions
        node.engine = Engine(ENGINE, node.engine.speed)
        node.finished = 0
        node.busy = node.up = False


def play(contestant: Contestant, scenario: Scenario, seed: int, trace: Path | None = None) -> Figures:
    """Run one contestant through a scenario, with the requests of a trace if one is given."""
    return Run(contestant, scenario, seed, scenario.calls(seed, trace)).play()
