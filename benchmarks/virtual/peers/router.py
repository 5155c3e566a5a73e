"""What the laws of routers have in common: they count what they have sent, and some remember prefixes."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.virtual.contestant import Contestant
from benchmarks.virtual.peers.prefix_index import PrefixIndex

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


@dataclass(slots=True)
class Ticket:
    """A request under way.

    Attributes:
        node: where it was sent.
        tokens: of its prompt, how many count as pending there; 0 after the first token.
        ahead: the tokens that were pending there when it was sent, its own included.
        sent_at: when, seconds.
    """

    node: int
    tokens: int
    ahead: int
    sent_at: float


class Router(Contestant):
    """A router that counts requests and pending prompt tokens at each node.

    Attributes:
        requests: under way, by node.
        tokens: uncached prompt tokens of requests without a first token, by node.
        now: when the request arrived that is chosen for; seconds.
    """

    def __init__(self, name: str) -> None:
        """Take the name in tables."""
        self.name = name

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start with nothing under way."""
        del scenario
        self.nodes, self.chance = nodes, chance
        self.requests, self.tokens, self.now = [0] * len(nodes), [0] * len(nodes), 0.0

    @abc.abstractmethod
    def pick(self, call: Call, cached: dict[int, int], usable: Sequence[int]) -> int:
        """Choose one of the usable nodes.

        `cached`: by node, how many tokens of the prompt the router takes to be cached there; 0 if not in it.
        """

    def cached(self, call: Call) -> dict[int, int]:
        """Return by node how many tokens of a prompt it probably has cached; nothing if prefixes are not remembered."""
        del call
        return {}

    def note(self, call: Call, node: int) -> None:
        """Remember where a request is sent."""
        del call, node

    @staticmethod
    def uncached(call: Call, cached: dict[int, int], node: int) -> int:
        """Return how many tokens of a prompt a node must compute; the last one always."""
        return max(1, call.prompt_tokens - cached.get(node, 0))

    def best(self, usable: Sequence[int], cost: Callable[[int], float]) -> int:
        """Return the node with the least cost; ties are decided at random."""
        return min(usable, key=lambda node: (cost(node), self.chance.random()))

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Ticket] | None:
        """Choose a node, and count the request there."""
        usable = [node for node in range(len(self.nodes)) if node not in tried]
        if not usable:
            return None
        self.now = now
        cached = self.cached(call)
        node = self.pick(call, cached, usable)
        self.note(call, node)
        tokens = self.uncached(call, cached, node)
        self.requests[node] += 1
        self.tokens[node] += tokens
        return node, Ticket(node, tokens, self.tokens[node], now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Count the prompt as done."""
        del now
        self.tokens[ticket.node] -= ticket.tokens
        ticket.tokens = 0

    def ended(self, ticket: Ticket, now: float, *, failed: bool) -> None:
        """Count the request as gone."""
        del failed
        self.requests[ticket.node] -= 1
        if ticket.tokens:
            Router.first_token(self, ticket, now)


class PrefixRouter(Router):
    """A router that also remembers which node was sent which prompts, as much of each node as its KV cache holds."""

    block_tokens = 64

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start with an empty memory."""
        super().begin(nodes, scenario, chance)
        self.prefixes = PrefixIndex([self.capacity(node) for node in nodes])

    def capacity(self, node: VirtualNode) -> int:
        """Return how many blocks are remembered of a node."""
        config = node.engine.config
        return config.num_blocks * config.block_size // self.block_tokens

    def cached(self, call: Call) -> dict[int, int]:
        """Return by node how many tokens of a prompt it was sent before, in whole blocks."""
        matched = self.prefixes.matched(call.prefix(self.block_tokens))
        return {node: blocks * self.block_tokens for node, blocks in matched.items()}

    def note(self, call: Call, node: int) -> None:
        """Remember the prompt's blocks."""
        self.prefixes.note(call.prefix(self.block_tokens), node, self.now)
