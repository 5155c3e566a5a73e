local choice = require "vllm_nginx_lb.choice"
local off = require "vllm_nginx_lb.affinity.off"

describe("choice", function()
    local ejected, affinity, is_full, kv_left, passed_over

    --- Nodes of these weights; each may be given as {weight, max_conns}.
    local function pool_of(weights)
        local nodes = {}
        for i, weight in ipairs(weights) do
            local max_conns = type(weight) == "table" and weight[2] or 0
            weight = type(weight) == "table" and weight[1] or weight
            nodes[i] = { peer = "node-" .. i, effective_weight = weight, slot = i - 1, max_conns = max_conns }
            nodes[i].kv_left = kv_left[i]
        end
        return { nodes = nodes }
    end

    --- Totals of {pending bytes, streams} of each node.
    local function totals_of(loads)
        local totals = {}
        for i, load in ipairs(loads) do
            totals[2 * i - 2], totals[2 * i - 1] = load[1], load[2]
        end
        return totals
    end

    local function new()
        return choice.new {
            settings = { stream_bytes = 100, ingresses = 1 },
            ejection = {
                out = function()
                    return ejected
                end,
            },
            affinity = affinity,
            full = {
                lately = function()
                    return is_full
                end,
            },
            counts = {
                passed_over = function(_, peer)
                    passed_over[#passed_over + 1] = peer
                end,
            },
            random = function()
                return 1
            end,
        }
    end

    local function pick(request, weights, loads)
        local node, why = new():pick(request, pool_of(weights), totals_of(loads))
        return node and node.peer, why
    end

    local function request_of(tried, cached)
        return { bytes = 0, tokens_per_byte = 0.25, cached = cached or {}, tried = tried or {} }
    end

    --- An affinity that prefers a node up to a score.
    local function preferring(peer, limit)
        return {
            preferred = function(_, _, pool, may_take)
                for _, node in ipairs(pool.nodes) do
                    if node.peer == peer and may_take(node) then
                        return node, limit
                    end
                end
                return nil
            end,
        }
    end

    before_each(function()
        ejected, affinity, is_full, kv_left, passed_over = {}, off.new(), {}, {}, {}
    end)

    it("is where the least work is", function()
        assert.same({ "node-2", "least work" }, { pick(request_of(), { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
    end)

    it("passes over a node whose KV cache has no room for the request", function()
        kv_left = { 24 } -- tokens; the request has 25
        local request = request_of()
        request.bytes = 100
        local loads = { { 0, 0 }, { 9, 1 }, { 0, 5 } }
        assert.same({ "node-2", "least work, with KV room" }, { pick(request, { 1, 1, 1 }, loads) })
        assert.same({ "node-1" }, passed_over)
        request.cached["node-1"] = 4 -- this much of it needs no room
        assert.same({ "node-1", "least work, cached prefix" }, { pick(request, { 1, 1, 1 }, loads) })
        assert.same({ "node-1" }, passed_over)
    end)

    it("passes over nobody who would not get the request anyway", function()
        kv_left = { -1 }
        assert.same({ "node-2", "least work" }, { pick(request_of(), { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
        assert.same({}, passed_over)
    end)

    it("is where the least work is when no KV cache has room, and what a node lacks is work", function()
        kv_left = { -1, -1 }
        affinity = preferring("node-1", math.huge)
        assert.same({ "node-1", "affinity" }, { pick(request_of(), { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
        affinity = off.new()
        assert.same({ "node-2", "least work" }, { pick(request_of(), { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
        kv_left = { -1, -99 }
        assert.same({ "node-1", "least work" }, { pick(request_of(), { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
        assert.same({}, passed_over)
    end)

    it("leaves the node of an affinity alone whose KV cache has no room", function()
        kv_left = { -1 }
        affinity = preferring("node-1", math.huge)
        local loads = { { 0, 0 }, { 9, 1 } }
        assert.same({ "node-2", "least work, with KV room" }, { pick(request_of(), { 1, 1 }, loads) })
    end)

    it("prefers a node without room in its KV cache to one that is ejected", function()
        kv_left, ejected = { -1 }, { ["node-2"] = 1 }
        assert.same({ "node-1", "least work" }, { pick(request_of(), { 1, 1 }, { { 0, 0 }, { 9, 1 } }) })
    end)

    it("says when that node has the prompt cached", function()
        local request = request_of({}, { ["node-2"] = 1024 })
        assert.same({ "node-2", "least work, cached prefix" }, { pick(request, { 1, 1 }, { { 9, 1 }, { 0, 0 } }) })
    end)

    it("passes over ejected nodes, and those that had the request", function()
        ejected["node-1"] = true
        local loads = { { 0, 0 }, { 5, 0 }, { 9, 0 } }
        assert.equal("node-2", pick(request_of(), { 1, 1, 1 }, loads))
        assert.equal("node-3", pick(request_of { ["node-2"] = true }, { 1, 1, 1 }, loads))
    end)

    it("passes over a node that has as many requests as it may", function()
        assert.equal("node-2", pick(request_of(), { { 1, 2 }, 1 }, { { 0, 2 }, { 9, 9 } }))
        assert.equal("node-1", pick(request_of(), { { 1, 3 }, 1 }, { { 0, 2 }, { 9, 9 } }))
    end)

    it("is the least loaded when all are ejected", function()
        ejected = { ["node-1"] = true, ["node-2"] = true }
        local loads = { { 5, 0 }, { 0, 0 } }
        assert.same({ "node-2", "last resort" }, { pick(request_of(), { 1, 1 }, loads) })
        assert.same({ "node-1", "last resort" }, { pick(request_of { ["node-2"] = true }, { 1, 1 }, loads) })
    end)

    it("is once more a node that had the request, when all had it", function()
        local request = request_of { ["node-1"] = true, ["node-2"] = true }
        local loads = { { 5, 0 }, { 0, 0 } }
        assert.same({ "node-2", "last resort" }, { pick(request, { 1, 1 }, loads) })
        assert.is_nil(pick(request, { 1, 1 }, loads))
    end)

    -- Nodes of these weights and limits, their loads, which of them had the request, and who gets it.
    for name, case in pairs {
        ["are full"] = { { { 1, 1 }, { 1, 1 }, 1 }, {}, nil },
        ["had the request"] = { { 1, 1, 1 }, { ["node-1"] = true, ["node-2"] = true }, "node-1" },
        ["had it, or are full"] = { { 1, { 1, 1 }, 1 }, { ["node-1"] = true }, "node-1" },
        ["had it, and are full"] = { { { 1, 1 }, { 1, 1 }, 1 }, { ["node-1"] = true }, nil },
        ["have no weight"] = { { 0, 0, 1 }, {}, "node-3" },
    } do
        it("is no ejected node where the others " .. name .. ", unless they serve nobody", function()
            ejected = { ["node-3"] = true }
            local weights, tried, expected = unpack(case, 1, 3)
            local loads = { { 5, 1 }, { 9, 1 }, { 0, 0 } }
            local request = request_of(tried)
            assert.equal(expected, (pick(request, weights, loads)))
            local is_left = new():has_untried(request, pool_of(weights), totals_of(loads))
            assert.equal(expected == "node-3", is_left)
        end)
    end

    it("is nobody where all are full or without weight", function()
        assert.is_nil(pick(request_of(), { { 1, 1 }, 0 }, { { 0, 1 }, { 0, 0 } }))
    end)

    it("is the node that the request belongs to, up to its limit", function()
        local loads = { { 0, 0 }, { 5, 0 } }
        affinity = preferring("node-2", 5)
        assert.same({ "node-2", "affinity" }, { pick(request_of(), { 1, 1 }, loads) })
        affinity = preferring("node-2", 4)
        assert.same({ "node-1", "least work, off its affinity" }, { pick(request_of(), { 1, 1 }, loads) })
        ejected["node-2"] = true
        assert.same({ "node-1", "least work" }, { pick(request_of(), { 1, 1 }, loads) })
    end)

    it("is a node that has not said lately that it is full, where there is one", function()
        local loads = { { 0, 0 }, { 5, 0 }, { 9, 0 } }
        is_full = { ["node-1"] = true, ["node-2"] = true }
        affinity = preferring("node-1", 99)
        assert.same({ "node-3", "least work" }, { pick(request_of(), { 1, 1, 1 }, loads) })
        affinity = off.new()
        assert.same({ "node-1", "least work" }, { pick(request_of { ["node-3"] = true }, { 1, 1, 1 }, loads) })
        ejected["node-3"] = true
        assert.same({ "node-1", "least work" }, { pick(request_of(), { 1, 1, 1 }, loads) })
    end)

    it("tells whether there is a node that did not have the request", function()
        local pool, totals = pool_of { 1, 0, { 1, 1 } }, totals_of { { 0, 0 }, { 0, 0 }, { 0, 1 } }
        assert.is_true(new():has_untried(request_of(), pool, totals))
        assert.is_false(new():has_untried(request_of { ["node-1"] = true }, pool, totals))
    end)
end)
