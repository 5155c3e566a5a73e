local slow_start = require "vllm_nginx_lb.slow_start"

--- A pool of nodes: address and weight of each.
local function pools(...)
    local nodes = {}
    for i, each in ipairs { ... } do
        nodes[i] = { peer = each[1], weight = each[2] }
    end
    return { llm_cluster = { nodes = nodes } }
end

--- To a thousandth.
local function effective_weights(of)
    local found = {}
    for i, node in ipairs(of.llm_cluster.nodes) do
        found[i] = math.floor(node.effective_weight * 1000 + 0.5) / 1000
    end
    return found
end

describe("slow start", function()
    it("is for no node when a worker begins", function()
        local first = pools({ "a", 100 }, { "b", 0 })
        slow_start.begin(first, nil, 1000, 30)
        assert.same({ 100, 0 }, effective_weights(first))
    end)

    it("begins with a tenth for a node that is new or comes back, and ends with all", function()
        local first, second = pools({ "a", 100 }, { "b", 0 }), pools({ "a", 80 }, { "b", 100 }, { "c", 50 })
        slow_start.begin(first, nil, 1000, 30)
        slow_start.begin(second, first, 2000, 30)
        assert.same({ 80, 10, 5 }, effective_weights(second))
        slow_start.go_on(second, 2015, 30)
        assert.same({ 80, 55, 27.5 }, effective_weights(second))
        slow_start.go_on(second, 2031, 30)
        assert.same({ 80, 100, 50 }, effective_weights(second))
        assert.is_nil(second.llm_cluster.nodes[2].slow_since)
    end)

    it("goes on with new weights", function()
        local first, second, third = pools { "a", 0 }, pools { "a", 100 }, pools { "a", 60 }
        slow_start.begin(first, nil, 1000, 30)
        slow_start.begin(second, first, 2000, 30)
        slow_start.begin(third, second, 2015, 30)
        assert.same({ 33 }, effective_weights(third))
    end)

    it("is not for a server that has served under another name", function()
        local second = pools { "a", 100 }
        slow_start.begin(second, pools({ "a", 100 }, { "a", 0 }), 2000, 30)
        assert.same({ 100 }, effective_weights(second))
        second = pools { "a", 100 }
        slow_start.begin(second, pools({ "a", 0 }, { "a", 100 }), 2000, 30)
        assert.same({ 100 }, effective_weights(second))
    end)

    it("is for a node that comes to another pool", function()
        local first = { other = { nodes = { { peer = "a", weight = 100 } } } }
        local second = pools { "a", 100 }
        slow_start.begin(second, first, 2000, 30)
        assert.same({ 10 }, effective_weights(second))
    end)

    it("can be switched off", function()
        local second = pools { "a", 100 }
        slow_start.begin(second, pools { "a", 0 }, 2000, 0)
        assert.same({ 100 }, effective_weights(second))
    end)
end)
