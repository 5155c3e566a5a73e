local affinity = require "vllm_nginx_lb.affinity"

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

--- The preferred peer of each of some keys.
local function preferences(of, usable)
    local ring, found = affinity.ring(of, hash), {}
    for i = 1, 4000 do
        found[i] = of[affinity.preferred(ring, hash("session " .. i), usable or always)]
    end
    return found
end

describe("affinity", function()
    it("gives each node about as many keys", function()
        local counts = {}
        for _, peer in ipairs(preferences(peers(4))) do
            counts[peer] = (counts[peer] or 0) + 1
        end
        for i = 1, 4 do
            local count = counts[("127.0.0.%d:8000"):format(i)]
            assert.is_true(count > 600 and count < 1400, count)
        end
    end)

    it("moves only the keys of a node that is gone", function()
        local before = preferences(peers(4))
        local after = preferences(peers(4), function(index)
            return index ~= 2
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
        local ring = affinity.ring(peers(2), hash)
        assert.is_number(affinity.preferred(ring, 0, always))
        assert.is_number(affinity.preferred(ring, 2 ^ 32 - 1, always))
        assert.is_nil(affinity.preferred(ring, 7, function()
            return false
        end))
        assert.is_nil(affinity.preferred({}, 7, always))
    end)

    it("yields to work", function()
        assert.is_true(affinity.within(20, 10, 2, 0))
        assert.is_false(affinity.within(21, 10, 2, 0))
        assert.is_true(affinity.within(5, 0, 2, 5))
        assert.is_false(affinity.within(6, 0, 2, 5))
    end)
end)
