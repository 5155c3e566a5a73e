"""Contestant in virtual time: the balancer `work`. Its own Lua chooses, run by LuaJIT in this process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import lupa.luajit21 as lupa

from benchmarks import workload
from benchmarks.scenario import LUA, MAX_REQUEST_BYTES, NO_RELOAD_LIMITS, STREAM_BYTES
from benchmarks.virtual.nginx import ScriptWeights

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call


class OutstandingWork(ScriptWeights):
    """The balancer `work`: Lua chooses, with the weights of the script, which it has as soon as they are decided."""

    balancer = "work"

    def __init__(self, name: str, policy: str, *, stream_bytes: float = STREAM_BYTES, **settings: Any) -> None:
        """Weigh by a policy; an open stream counts as so many bytes of prompt."""
        super().__init__(name, policy, reload_limits=NO_RELOAD_LIMITS, **settings)
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

    def ended(self, ticket: Any, now: float, *, failed: bool) -> None:
        """Count the request out."""
        del now, failed
        self.first_token(ticket)
        self.streams[ticket[0]] -= 1

    def report(self, summary: Summary) -> None:
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
