local weights_format = require "vllm_nginx_lb.weights_format"

local function node(changes)
    local found = { name = "node-a", address = "127.0.0.2", port = 8000, weight = 100 }
    for key, value in pairs(changes or {}) do
        found[key] = value
    end
    return found
end

local function file(nodes, changes)
    local found = { version = 1, generation = "0a1b", pools = { { name = "llm_cluster", nodes = nodes } } }
    for key, value in pairs(changes or {}) do
        found[key] = value
    end
    return found
end

describe("weights_format", function()
    it("reads pools and their nodes", function()
        local found = weights_format.read(file { node(), node { name = "node-b", address = "::1", weight = 0 } })
        assert.equal("0a1b", found.generation)
        assert.same({ "127.0.0.2:8000", "[::1]:8000" }, found.peers)
        local nodes = found.pools.llm_cluster.nodes
        assert.equal(0, nodes[1].max_conns)
        assert.equal(8, weights_format.read(file { node { max_conns = 8 } }).pools.llm_cluster.nodes[1].max_conns)
        assert.same({ "127.0.0.2", 8000, 100, 0 }, { nodes[1].host, nodes[1].port, nodes[1].weight, nodes[1].slot })
        assert.same({ "[::1]", 8000, 0, 1 }, { nodes[2].host, nodes[2].port, nodes[2].weight, nodes[2].slot })
    end)

    it("tells the pool of each model", function()
        local pools = { { name = "a", models = { "m", "n/o-7b" }, nodes = {} }, { name = "b", nodes = {} } }
        assert.same({ m = "a", ["n/o-7b"] = "a" }, weights_format.read(file({}, { pools = pools })).models)
    end)

    it("gives one server one slot, whatever it is called", function()
        local twin = node { name = "twin", weight = 0 }
        local found = weights_format.read(file { node(), twin, node { name = "c", port = 1 } })
        local slots = {}
        for i, each in ipairs(found.pools.llm_cluster.nodes) do
            slots[i] = each.slot
        end
        assert.same({ 0, 0, 1 }, slots)
        assert.equal(2, #found.peers)
    end)

    local refused = {
        { "version: expected 1", file({ node() }, { version = 2 }) },
        { "version: expected 1", "text" },
        { "generation: expected letters and digits", file({ node() }, { generation = "a;b" }) },
        { "pools: expected a list with at least one", file({}, { pools = {} }) },
        { "pools[0].name: expected 1 to 63", file({}, { pools = { { name = "a b", nodes = {} } } }) },
        { "pools[0].nodes: expected a list", file({}, { pools = { { name = "a", nodes = { a = 1 } } } }) },
        { "pools[0].models: expected a list", file({}, { pools = { { name = "a", models = "m", nodes = {} } } }) },
        { "pools[0].models: expected names", file({}, { pools = { { name = "a", models = { "" }, nodes = {} } } }) },
        {
            "pools[1].models: expected names of models, each in one pool",
            file({}, {
                pools = { { name = "a", models = { "m" }, nodes = {} }, { name = "b", models = { "m" }, nodes = {} } },
            }),
        },
        { "pools[0].nodes[0] is not an object", file { 7 } },
        { "pools[0].nodes[0] name: expected 1 to 63", file { node { name = ("a"):rep(64) } } },
        { "pools[0].nodes[0] address: expected an IP", file { node { address = "node-a.example" } } },
        { "pools[0].nodes[0] address: expected an IP", file { node { address = "999.1.1.1" } } },
        { "pools[0].nodes[0] address: expected an IP", file { node { address = "::::" } } },
        { "pools[0].nodes[0] port: expected 1 to 65535", file { node { port = 0 } } },
        { "pools[0].nodes[0] port: expected 1 to 65535", file { node { port = "8000" } } },
        { "pools[0].nodes[0] weight: expected 0 to 100", file { node { weight = 101 } } },
        { "pools[0].nodes[0] weight: expected 0 to 100", file { node { weight = 0.5 } } },
        { "pools[0].nodes[0] weight: expected 0 to 100", file { node { weight = 0 / 0 } } },
        { "pools[0].nodes[0] max_conns: expected 0 to 65535", file { node { max_conns = -1 } } },
        { "pools[0].nodes[0] max_conns: expected 0 to 65535", file { node { max_conns = "8" } } },
        { "pools[0].nodes[1] 127.0.0.2:8000 serves twice", file { node(), node { name = "twin" } } },
    }
    for _, case in ipairs(refused) do
        it("refuses as a whole: " .. case[1], function()
            local found, problem = weights_format.read(case[2])
            assert.is_nil(found)
            assert.equal(1, problem:find(case[1], 1, true), problem)
        end)
    end
end)
