local least_work = require "vllm_nginx_lb.least_work"

local SETTINGS = { stream_bytes = 100, ingresses = 1 }

local function always()
    return true
end

local function first()
    return 1
end

--- Nodes of these weights, and totals of {pending bytes, streams} of each.
local function pool(weights, loads)
    local nodes, totals = {}, {}
    for i, weight in ipairs(weights) do
        nodes[i] = { peer = "node-" .. i, effective_weight = weight, slot = i - 1 }
        totals[2 * i - 2], totals[2 * i - 1] = loads[i][1], loads[i][2]
    end
    return nodes, totals
end

local function best(weights, loads, bytes, usable, random, cached, settings)
    local nodes, totals = pool(weights, loads)
    local request = { bytes = bytes or 0, cached = cached or {} }
    local node, score = least_work.best(nodes, totals, request, settings or SETTINGS, usable or always, random or first)
    return node and node.peer, score
end

describe("least_work", function()
    it("takes the node with the fewest bytes to begin", function()
        assert.equal("node-2", best({ 1, 1 }, { { 5000, 1 }, { 30, 1 } }))
    end)

    it("weighs open streams, too", function()
        assert.equal("node-1", best({ 1, 1 }, { { 150, 1 }, { 0, 3 } }))
    end)

    it("counts per effective weight", function()
        assert.equal("node-1", best({ 100, 40 }, { { 1000, 0 }, { 500, 0 } }))
        assert.equal("node-2", best({ 100, 60 }, { { 1000, 0 }, { 500, 0 } }))
    end)

    it("counts the request itself: on idle nodes the one that does more", function()
        local peer, score = best({ 40, 100 }, { { 0, 0 }, { 0, 0 } }, 1000)
        assert.equal("node-2", peer)
        assert.equal(10, score)
    end)

    it("counts what a node has cached of the request as work it saves", function()
        local cached = { ["node-2"] = 2048 }
        assert.equal("node-2", best({ 1, 1 }, { { 0, 0 }, { 2000, 0 } }, 4000, always, first, cached))
        assert.equal("node-1", best({ 1, 1 }, { { 0, 0 }, { 4100, 0 } }, 4000, always, first, cached))
    end)

    it("counts that as no less than nothing, or a weaker node would be the better one", function()
        local cached = { ["node-1"] = 4096, ["node-2"] = 4096 }
        assert.equal("node-1", best({ 100, 10 }, { { 100, 0 }, { 100, 0 } }, 4200, always, first, cached))
    end)

    it("charges a node what it has not cached", function()
        local request = { bytes = 3000, cached = { ["node-2"] = 2048, ["node-3"] = 4096 } }
        assert.equal(3000, least_work.cost(request, { peer = "node-1" }))
        assert.equal(952, least_work.cost(request, { peer = "node-2" }))
        assert.equal(0, least_work.cost(request, { peer = "node-3" }))
        assert.equal(3000, least_work.cost(request, { peer = "node-2", slow_since = 7 })) -- it has started anew
    end)

    it("takes it that other ingresses do the same", function()
        local loads = { { 300, 0 }, { 0, 0 } }
        assert.equal("node-1", best({ 100, 40 }, loads, 1000))
        assert.equal("node-2", best({ 100, 40 }, loads, 1000, always, first, {}, { stream_bytes = 100, ingresses = 8 }))
    end)

    it("leaves out nodes of no weight, and those that may not be taken", function()
        assert.equal("node-2", best({ 0, 1 }, { { 0, 0 }, { 9000, 9 } }))
        local function not_the_first(node)
            return node.peer ~= "node-1"
        end
        assert.equal("node-2", best({ 1, 1 }, { { 0, 0 }, { 9000, 9 } }, 0, not_the_first))
        assert.is_nil(best({ 0, 0 }, { { 0, 0 }, { 0, 0 } }))
    end)

    it("breaks ties at random, each with the same chance", function()
        local counts = {}
        math.randomseed(1)
        for _ = 1, 6000 do
            local peer = best({ 1, 1, 1 }, { { 7, 0 }, { 7, 0 }, { 7, 0 } }, 0, always, math.random)
            counts[peer] = (counts[peer] or 0) + 1
        end
        for i = 1, 3 do
            assert.is_true(counts["node-" .. i] > 1800 and counts["node-" .. i] < 2200)
        end
    end)
end)
