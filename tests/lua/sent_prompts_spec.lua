local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local sent_prompts = require "vllm_nginx_lb.sent_prompts"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "[2001:db8::3]:8000"

describe("sent_prompts", function()
    local dict, sent

    before_each(function()
        dict = shared_dict.open(new_dict(), { name = "test" })
        sent = sent_prompts.new(dict)
    end)

    it("adds up the bytes of each node", function()
        sent:add(A, 1000)
        sent:add(A, 500.5)
        assert.same({ 1500.5, 0 }, { sent:to(A), sent:to(B) })
    end)

    it("drops the sum of a node that has left the list", function()
        sent:add(A, 1000)
        sent:add(B, 10)
        node_counts.new(dict):keep_only { B }
        assert.same({ 0, 10 }, { sent:to(A), sent:to(B) })
    end)
end)
