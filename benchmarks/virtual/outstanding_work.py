"""Contestant in virtual time: the balancer `work`. Its own Lua chooses, run by LuaJIT in this process."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import lupa.luajit21 as lupa

from benchmarks import workload
from benchmarks.scenario import LUA
from benchmarks.virtual.script_weights import ScriptWeights

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.node import VirtualNode
    from benchmarks.workload import Call

BLOCK_TOKENS = 16  # of the names that a call has for its prompt's blocks
BLOCK_BYTES = BLOCK_TOKENS * workload.CHARACTERS_PER_TOKEN
# One ingress with one pool, over the pure modules of the role's Lua. Settings have their defaults but for those given.
# The name of a node is its slot, the index in the fleet. Lists are passed as further arguments.
INGRESS = """
local kv_room = require "vllm_nginx_lb.kv_room"
local least_work = require "vllm_nginx_lb.least_work"
local prompt_marks = require "vllm_nginx_lb.prompt_marks"
local cache_clock = require "vllm_nginx_lb.cache_clock"
local pending = require "vllm_nginx_lb.pending"
local prefill = require "vllm_nginx_lb.prefill"
local progress = require "vllm_nginx_lb.progress"
local slow_start = require "vllm_nginx_lb.slow_start"
local tokens = require "vllm_nginx_lb.tokens"

--- A shared dictionary that is never full.
local function endless_dict()
    local values = {}
    return {
        get = function(_, key) return values[key] end,
        set = function(_, key, value) values[key] = value end,
        incr = function(_, key, by) values[key] = (values[key] or 0) + by end,
        capacity = function() return 2 ^ 24 end,
        free_space = function() return 1 end,
    }
end

return function(given, counts_pending, counts_progress, randint)
    local settings = assert(require("vllm_nginx_lb.settings").of(given))
    local pools, totals, ingress, caches = nil, {}, {}, cache_clock.new(endless_dict(), function() return 0 end)
    local affinity = require("vllm_nginx_lb.affinity." .. settings.affinity).new {
        dict = endless_dict(),
        cache_clock = caches,
        has_refused = function() return false end,
    }
    ingress.distance, ingress.has_marks = prompt_marks.distance, settings.affinity == "prefix"

    -- By slot: what a node's last reading had, and by how many tokens the prompts of its open requests have grown.
    local known, grown, rooms_at = {}, {}, 0

    -- Set the room in the KV caches of all nodes.
    local function set_rooms()
        for _, node in ipairs(pools and pools.pool.nodes or {}) do
            local reading = known[node.slot] or {}
            node.kv_tokens, node.kv_usage = reading.tokens, reading.usage
            kv_room.set(node, grown[node.slot] or 0, settings.kv_share)
        end
    end

    -- Take the reading of a node's KV cache: its size in tokens and its usage; nil where it is not known.
    function ingress.read(slot, size, usage)
        local former = known[slot] or {}
        known[slot], grown[slot] = { tokens = size or former.tokens, usage = usage }, 0
        set_rooms()
    end

    -- Take the weights of all nodes.
    function ingress.publish(now, ...)
        local former, nodes = pools, {}
        for i, weight in ipairs { ... } do
            nodes[i] = { peer = tostring(i), slot = i - 1, weight = weight }
            totals[2 * i - 2], totals[2 * i - 1] = totals[2 * i - 2] or 0, totals[2 * i - 1] or 0
        end
        pools = { pool = { nodes = nodes } }
        slow_start.begin(pools, former, now, settings.ramp_seconds)
        affinity:on_nodes(pools.pool)
        set_rooms()
    end

    -- Add pending bytes and streams to a node's totals.
    function ingress.count(slot, bytes, streams)
        bytes = counts_pending and bytes or 0
        totals[2 * slot], totals[2 * slot + 1] = totals[2 * slot] + bytes, totals[2 * slot + 1] + streams
    end

    local in_flight = { add = function(_, peer, bytes, streams) ingress.count(tonumber(peer) - 1, bytes, streams) end }
    local speeds = prefill.new(endless_dict(), settings.prefill_bytes_per_second)
    local no_progress = { follow = function() end, see = function() end }
    local steps = counts_progress and progress.new(in_flight, speeds) or no_progress
    local prompts = pending.new(in_flight, steps)

    -- The bytes that are pending at a node, and in how many seconds it will probably have computed them.
    function ingress.ahead(slot)
        return totals[2 * slot], speeds:seconds(tostring(slot + 1), totals[2 * slot])
    end

    -- Choose a node for a request of so many bytes and these prefix marks, each "NAME END", and count it. Whether each
    -- node may be taken follows.
    function ingress.choose(now, bytes, is_streamed, marks, ...)
        local usable = { ... }
        prompts:finish_due(now)
        local request = { marks = {}, mark_ends = {}, client = "" }
        for mark, bytes_to_end in marks:gmatch "(%S+) (%d+)" do
            request.marks[#request.marks + 1] = mark
            request.mark_ends[#request.mark_ends + 1] = tonumber(bytes_to_end)
        end
        request.prompt_bytes = settings.affinity == "prefix" and bytes or nil
        request.bytes, request.tokens_per_byte = least_work.prompt_bytes(request, bytes), tokens.PER_BYTE
        request.cached = affinity:cached(request, pools.pool)
        slow_start.go_on(pools, now, settings.ramp_seconds)
        if now >= rooms_at + settings.refresh_seconds then
            rooms_at = now
            set_rooms()
        end
        local node = kv_room.best(pools.pool.nodes, totals, request, settings, function(candidate)
            return usable[candidate.slot + 1]
        end, function(n) return randint(1, n) end)
        if node then
            local cost, count = least_work.cost(request, node), kv_room.tokens(request, node)
            in_flight:add(node.peer, cost, 1)
            local it = { slot = node.slot, peer = node.peer, pending = cost, cost_tokens = count, sent_at = now }
            it.ahead, it.predicted = ingress.ahead(node.slot)
            it.output = is_streamed and {} or nil
            caches:add(node.peer, count)
            affinity:note(request, node)
            grown[node.slot] = (grown[node.slot] or 0) + count
            kv_room.take(node, count)
            prompts:expect(it, now)
            return it
        end
    end

    -- The first output of a stream has come.
    function ingress.first_output(it, now)
        prompts:finish(it)
        speeds:learn(it.peer, it.ahead, now - it.sent_at)
    end

    -- A request has ended; its answer has so many tokens.
    function ingress.finish(it, answered)
        in_flight:add(it.peer, -it.pending, -1)
        caches:add(it.peer, answered)
        grown[it.slot] = grown[it.slot] - it.cost_tokens
        it.peer, it.pending = nil, 0
    end

    return ingress
end
"""


class OutstandingWork(ScriptWeights):
    """The balancer `work`: Lua chooses, with the weights of the script, which it has as soon as they are decided."""

    balancer = "work"

    def __init__(
        self,
        name: str,
        policy: str,
        *,
        known: bool = False,
        pending: bool = True,
        progress: bool = True,
        **settings: float | str,
    ) -> None:
        """Weigh by a policy of the script; `settings` are those of the Lua code that differ from their defaults.

        `known`: the operator has set the nodes' capacities. `pending`: False takes the prompts of other requests, which
        wait, out of the score. `progress`: False lets a long prompt count as a whole until its first output.
        """
        super().__init__(name, policy, known=known)
        self.pending, self.progress, self.settings = pending, progress, settings

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start with nothing under way."""
        super().begin(nodes, scenario, chance)
        lua = lupa.LuaRuntime()
        lua.execute(f"package.path = '{LUA}/?.lua'")
        make_ingress: Any = lua.execute(INGRESS)
        settings = lua.table_from(self.settings)
        self.ingress: Any = make_ingress(settings, self.pending, self.progress, chance.randint)
        self.mark_ends = [self.ingress.distance(0)]

    def tick(self, now: float) -> None:
        """Decide, and give the readings of KV caches to Lua."""
        super().tick(now)
        for node in self.nodes:
            reading = node.sample().reading
            tokens, usage = (reading.kv_cache_tokens, reading.kv_cache_usage) if reading else (None, None)
            self.ingress.read(node.index, tokens, usage)

    def publish(self, weights: Sequence[int], now: float) -> None:
        """Give new weights to Lua."""
        self.ingress.publish(now, *weights)

    def waits(self, *_: object) -> bool:
        """Return False: new weights need no reload, so no limit applies."""
        return False

    def choose(self, call: Call, tried: set[int], now: float) -> tuple[int, Any] | None:
        """Let Lua choose."""
        size = call.prompt_tokens * workload.CHARACTERS_PER_TOKEN
        usable = [index not in tried for index in range(len(self.nodes))]
        it = self.ingress.choose(now, size, call.streamed, self.marks(call), *usable)
        return (it.slot, (it, call.output_tokens)) if it else None

    def marks(self, call: Call) -> str:
        """Return the prompt's prefix marks, from its beginning on, each "NAME END"; "" without prefixes."""
        if not self.ingress.has_marks:
            return ""
        blocks = call.prefix(BLOCK_TOKENS)
        size = len(blocks) * BLOCK_BYTES
        while self.mark_ends[-1] <= size:
            self.mark_ends.append(self.mark_ends[-1] + self.ingress.distance(self.mark_ends[-1]))
        ends = self.mark_ends[: bisect_right(self.mark_ends, size)]
        return " ".join(f"{blocks[end // BLOCK_BYTES - 1]} {end}" for end in ends)

    def first_token(self, ticket: Any, now: float) -> None:
        """Count the prompt as computed. A ticket is Lua's record of the request, and the tokens of its answer."""
        self.ingress.first_output(ticket[0], now)

    def ended(self, ticket: Any, now: float, *, failed: bool) -> None:
        """Release the request's work."""
        del now, failed
        self.ingress.finish(*ticket)

    def report(self, summary: Summary) -> None:
        """Set nothing: there are no reloads."""
