local session = require "vllm_nginx_lb.affinity.session"

--- A place for a text that looks random, the same each time.
local function hash(text)
    local sum = 0
    for i = 1, #text do
        sum = (sum * 65599 + text:byte(i)) % 2 ^ 32
    end
    math.randomseed(sum)
    return math.random(0, 2 ^ 32 - 1)
end

local function peers(count)
    local found = {}
    for i = 1, count do
        found[i] = ("127.0.0.%d:8000"):format(i)
    end
    return found
end

local function always()
    return true
end

local function never()
    return false
end

local SETTINGS = { session_header = "X-Session-Id", affinity_factor = 2, affinity_slack_bytes = 50 }

local function pool_of(addresses)
    local nodes = {}
    for i, peer in ipairs(addresses) do
        nodes[i] = { peer = peer, effective_weight = 10 }
    end
    return { nodes = nodes }
end

--- A request of a session, as the affinity has prepared it.
local function request_of(affinity, name)
    local request = {}
    affinity:prepare(request, function(header)
        return header == "X-Session-Id" and name or nil
    end)
    return request
end

--- The preferred address of each of some sessions.
local function preferences(addresses, may_take)
    local affinity, pool, found = session.new(SETTINGS, hash, never), pool_of(addresses), {}
    affinity:on_nodes(pool, nil)
    for i = 1, 4000 do
        local node = affinity:preferred(request_of(affinity, "session " .. i), pool, may_take or always, 0)
        found[i] = node.peer
    end
    return found
end

describe("session affinity", function()
    it("gives each node about as many sessions", function()
        local counts = {}
        for _, peer in ipairs(preferences(peers(4))) do
            counts[peer] = (counts[peer] or 0) + 1
        end
        for i = 1, 4 do
            local count = counts[("127.0.0.%d:8000"):format(i)]
            assert.is_true(count > 600 and count < 1400, count)
        end
    end)

    it("moves only the sessions of a node that is gone", function()
        local before = preferences(peers(4))
        local after = preferences(peers(4), function(node)
            return node.peer ~= "127.0.0.2:8000"
        end)
        local moved = 0
        for i, peer in ipairs(before) do
            assert.is_true(peer == after[i] or peer == "127.0.0.2:8000")
            moved = moved + (peer ~= after[i] and 1 or 0)
        end
        assert.is_true(moved > 0)
        assert.same(after, preferences { peers(4)[1], peers(4)[3], peers(4)[4] })
    end)

    it("goes around the ring, and ends", function()
        local place
        local affinity, pool = session.new(SETTINGS, function(text)
            return text == "session" and place or hash(text)
        end, never), pool_of(peers(2))
        affinity:on_nodes(pool, nil)
        for _, at in ipairs { 0, 2 ^ 32 - 1 } do
            place = at
            assert.is_table(affinity:preferred(request_of(affinity, "session"), pool, always, 0))
        end
        local request = request_of(affinity, "session")
        assert.is_nil(affinity:preferred(request, pool, function()
            return false
        end, 0))
        for _, node in ipairs(pool.nodes) do
            node.effective_weight = 0
        end
        assert.is_nil(affinity:preferred(request, pool, always, 0))
        local empty = pool_of {}
        affinity:on_nodes(empty, pool)
        assert.is_nil(affinity:preferred(request, empty, always, 0))
    end)

    it("goes elsewhere from a node that has refused it, and to any node where all have", function()
        local refusers = {}
        local affinity, pool = session.new(SETTINGS, hash, function(peer, place)
            return refusers[peer] == place
        end), pool_of(peers(3))
        affinity:on_nodes(pool, nil)
        local bad, other = request_of(affinity, "session 1"), request_of(affinity, "session 2")
        local others_home = affinity:preferred(other, pool, always, 0)
        for _ = 1, 3 do
            local node = affinity:preferred(bad, pool, always, 0)
            assert.is_nil(refusers[node.peer])
            refusers[node.peer] = bad.origin
        end
        assert.is_nil(affinity:preferred(bad, pool, always, 0))
        assert.equal(others_home, (affinity:preferred(other, pool, always, 0)))
    end)

    it("yields to work: twice the least, and the slack per weight", function()
        local affinity, pool = session.new(SETTINGS, hash, never), pool_of(peers(3))
        affinity:on_nodes(pool, nil)
        local request = request_of(affinity, "session 1")
        local _, limit = affinity:preferred(request, pool, always, 10)
        assert.equal(2 * 10 + 50 / 10, limit)
        _, limit = affinity:preferred(request, pool, always, 0)
        assert.equal(50 / 10, limit)
    end)

    it("prefers nobody for a request without a session, or with several", function()
        local affinity, pool = session.new(SETTINGS, hash, never), pool_of(peers(3))
        affinity:on_nodes(pool, nil)
        for _, name in ipairs { "", {}, { "a", "b" } } do
            assert.is_nil(affinity:preferred(request_of(affinity, name), pool, always, 0))
        end
        assert.is_nil(affinity:preferred(request_of(affinity, nil), pool, always, 0))
        assert.same({}, affinity:cached(request_of(affinity, "session 1")))
    end)

    it("keeps its ring while the nodes are the same", function()
        local affinity = session.new(SETTINGS, hash, never)
        local first, same, other = pool_of(peers(3)), pool_of(peers(3)), pool_of(peers(4))
        affinity:on_nodes(first, nil)
        affinity:on_nodes(same, first)
        affinity:on_nodes(other, same)
        assert.equal(first.ring, same.ring)
        assert.not_equal(first.ring, other.ring)
    end)
end)
