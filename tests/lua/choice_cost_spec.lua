--- What a choice costs: it reads as much of the shared dictionary among a thousand nodes as among ten.

local cache_clock = require "vllm_nginx_lb.cache_clock"
local choice = require "vllm_nginx_lb.choice"
local ejection = require "vllm_nginx_lb.ejection"
local full_nodes = require "vllm_nginx_lb.full_nodes"
local in_flight = require "vllm_nginx_lb.in_flight"
local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local off = require "vllm_nginx_lb.affinity.off"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local place = require "vllm_nginx_lb.place"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local OTHER_WORKERS = 3
-- Each case prepares a fleet, and says whether a request finds a node in it.
local CASES = {
    ["all are alike"] = { finds = true },
    ["each has a limit"] = {
        max_conns = 5,
        finds = true,
    },
    ["each has a limit, and all but one have as many as they may"] = {
        max_conns = 1,
        prepare = function(nodes, work)
            for i = 2, #nodes do
                work:add(nodes[i].peer, 0, 1)
            end
        end,
        finds = true,
    },
    ["all have as many as they may"] = {
        max_conns = 1,
        prepare = function(nodes, work)
            for i = 1, #nodes do
                work:add(nodes[i].peer, 0, 1)
            end
        end,
        finds = false,
    },
    ["one is out"] = {
        prepare = function(nodes, _, out)
            out:failed(nodes[1].peer, "unreachable", { nodes = nodes })
        end,
        finds = true,
    },
    ["all are out, and each has a limit"] = {
        max_conns = 5,
        prepare = function(nodes, _, out)
            for i = 1, #nodes do
                out:failed(nodes[i].peer, "unreachable", { nodes = nodes })
            end
        end,
        finds = true,
    },
    ["the KV caches of all but one are full"] = {
        prepare = function(nodes)
            for i = 2, #nodes do
                nodes[i].kv_left = 0
            end
        end,
        finds = true,
    },
    ["the KV caches of all are full"] = {
        prepare = function(nodes)
            for i = 1, #nodes do
                nodes[i].kv_left = 0
            end
        end,
        finds = true,
    },
    ["all but one are drained"] = {
        prepare = function(nodes)
            for i = 2, #nodes do
                nodes[i].effective_weight = 0
            end
        end,
        finds = true,
    },
}

--- How often a choice reads the dictionary, and whether it finds a node.
local function reads_of(case, count)
    local fake, reads = new_dict(), 0
    local dict = shared_dict.open(fake, { name = "test" })
    local function open(pid)
        return in_flight.open(dict, pid, function()
            return true
        end, function()
            return "0123456789abcdef"
        end)
    end
    local function now()
        return 0
    end
    local nodes, addresses = {}, {}
    for i = 1, count do
        addresses[i] = "node-" .. i
        nodes[i] = { peer = addresses[i], effective_weight = 1, slot = i - 1, max_conns = case.max_conns or 0 }
    end
    for pid = 2, 1 + OTHER_WORKERS do
        open(pid):use_nodes(addresses)
    end
    local work = open(1)
    work:use_nodes(addresses)
    local backoff = { first = 1, longest = 8, memory = 60, probe = 10, most_percent = 50 }
    local out = ejection.new(dict, backoff, now, node_counts.new(dict), function() end)
    out:use_nodes(addresses)
    if case.prepare then
        case.prepare(nodes, work, out)
    end
    local function accept()
        return true
    end
    local parts = { settings = { stream_bytes = 100, ingresses = 1 }, ejection = out, affinity = off.new() }
    parts.random, parts.full = math.random, full_nodes.new(now)
    local prompts, peers = open_prompts.new(dict), { set_current_peer = accept }
    parts.counts = node_counts.new(dict)
    local places = place.new {
        in_flight = work,
        open = prompts,
        cache_clock = cache_clock.new(dict, function()
            return 0
        end),
        choice = choice.new(parts),
        peers = peers,
    }
    local function take()
        return places:take({ bytes = 10, tokens_per_byte = 0.25, cached = {}, tried = {} }, { nodes = nodes })
    end
    out:out() -- what has changed is read once
    for _, name in ipairs { "get", "ttl", "get_keys" } do
        local original = fake[name]
        fake[name] = function(...)
            reads = reads + 1
            return original(...)
        end
    end
    local found = take() ~= nil
    return reads, found
end

describe("a choice", function()
    for name, case in pairs(CASES) do
        it("reads no more where there are more nodes: " .. name, function()
            local few, found = reads_of(case, 10)
            assert.equal(case.finds, found)
            assert.same({ few, found }, { reads_of(case, 1000) })
            assert.is_true(few < 20, few)
        end)
    end
end)
