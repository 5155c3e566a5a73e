local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local cache_clock = require "vllm_nginx_lb.cache_clock"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "[2001:db8::3]:8000"

describe("cache_clock", function()
    local dict, caches, now

    before_each(function()
        dict = shared_dict.open(new_dict(), { name = "test" })
        now = 0
        caches = cache_clock.new(dict, function()
            return now
        end)
    end)

    it("adds up the tokens of each node", function()
        caches:add(A, 1000)
        caches:add(A, 500)
        assert.same({ 1500, 0 }, { caches:of(A), caches:of(B) })
    end)

    it("drops the sum of a node that has left the list", function()
        caches:add(A, 1000)
        caches:add(B, 10)
        node_counts.new(dict):keep_only { B }
        assert.same({ 0, 10 }, { caches:of(A), caches:of(B) })
    end)

    it("of a node that returns is beyond all that it was", function()
        caches:add(A, 3 * 2 ^ 20)
        now = 10.5
        node_counts.new(dict):keep_only { B }
        caches:add(A, 5)
        assert.equal(10.5 * 2 ^ 20 + 5, caches:of(A))
    end)
end)
