local kv_room = require "vllm_nginx_lb.kv_room"

local REQUEST = { bytes = 400, tokens_per_byte = 0.25, cached = {} }

describe("kv_room", function()
    --- A node of 1,000 tokens, after `kv_room.set`.
    local function node_of(usage, more, share)
        local node = { peer = "node-1", kv_tokens = 1000, kv_usage = usage }
        kv_room.set(node, more, share or 0.9)
        return node
    end

    for what, case in pairs {
        ["what is left of the share"] = { node_of(0.5, 0), 400 },
        ["less what its open prompts have grown"] = { node_of(0.5, 325), 75 },
        ["and what they have shrunk is room again"] = { node_of(0.9, -125), 125 },
        ["below nothing when it is fuller"] = { node_of(0.95, 0), -50 },
        ["any amount without a share"] = { node_of(1, 0, 0), nil },
        ["any amount where the usage is not known"] = { node_of(nil, 0), nil },
    } do
        it("is " .. what, function()
            if case[2] then
                assert.near(case[2], case[1].kv_left, 1e-6)
            else
                assert.is_nil(case[1].kv_left)
            end
        end)
    end

    it("is not known where the size is not", function()
        local node = { kv_usage = 1, kv_left = 5 }
        kv_room.set(node, 0, 0.9)
        assert.is_nil(node.kv_left)
        kv_room.take(node, 10)
        assert.is_true(kv_room.has(node, REQUEST))
    end)

    it("is taken by each request that is sent", function()
        local node = node_of(0.75, 0)
        assert.is_true(kv_room.has(node, REQUEST))
        kv_room.take(node, 100)
        assert.is_false(kv_room.has(node, REQUEST))
        assert.is_true(kv_room.has(node, { bytes = 400, tokens_per_byte = 0.25, cached = { ["node-1"] = 300 } }))
        assert.is_true(kv_room.has(node, { bytes = 400, tokens_per_byte = 0.1, cached = {} }))
    end)

    it("is counted in whole tokens of what is not cached", function()
        local request = { bytes = 403, tokens_per_byte = 0.25, cached = { ["node-1"] = 100 } }
        assert.equal(76, kv_room.tokens(request, node_of(0, 0)))
        assert.equal(101, kv_room.tokens(request, { peer = "node-2" }))
    end)

    for what, case in pairs {
        ["the one that lacks less"] = { lefts = { -1250, -50 }, works = { 0, 10000 }, best = 2 },
        ["the one with less work, if they lack as much"] = { lefts = { -75, -75 }, works = { 800, 700 }, best = 2 },
        ["the one with less work, if it lacks little"] = { lefts = { -125, 0 }, works = { 0, 5000 }, best = 1 },
        ["the one with room"] = { lefts = { 99, 100 }, works = { 0, 10 ^ 6 }, best = 2, passed_over = 1 },
        ["the one whose room is not known"] = { lefts = { 0 }, works = { 0, 10 ^ 6 }, best = 2, passed_over = 1 },
    } do
        it("gives a request to " .. what, function()
            local nodes, totals = {}, {}
            for i = 1, 2 do
                nodes[i] = { peer = "node-" .. i, slot = i - 1, effective_weight = 100, kv_left = case.lefts[i] }
                totals[2 * i - 2], totals[2 * i - 1] = case.works[i], 0
            end
            local settings = { stream_bytes = 1024, ingresses = 1 }
            local may_take, random = function()
                return true
            end, function()
                return 1
            end
            local node, score, passed_over = kv_room.best(nodes, totals, REQUEST, settings, may_take, random)
            assert.equal(nodes[case.best], node)
            assert.equal((case.works[case.best] + 400) / 100, score)
            assert.equal(nodes[case.passed_over], passed_over)
        end)
    end
end)
