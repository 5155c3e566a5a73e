local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "[2001:db8::3]:8000"

describe("open_prompts", function()
    it("adds up what begins and ends at each node, until the node leaves the list", function()
        local dict = shared_dict.open(new_dict(), { name = "test" })
        local open = open_prompts.new(dict)
        open:add(A, 1000)
        open:add(A, -400)
        open:add(B, 10)
        assert.same({ 600, 10 }, { open:at(A), open:at(B) })
        node_counts.new(dict):keep_only { B }
        assert.same({ 0, 10 }, { open:at(A), open:at(B) })
    end)
end)
