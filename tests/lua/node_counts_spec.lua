local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "127.0.0.3:8000"

describe("node_counts", function()
    local dict, counts

    before_each(function()
        dict = new_dict()
        counts = node_counts.new(shared_dict.open(dict, { name = "test" }), 60)
    end)

    it("counts choices", function()
        counts:chosen(A)
        counts:chosen(A)
        assert.same({ 2, 0 }, { counts:times_chosen(A), counts:times_chosen(B) })
    end)

    it("knows the last first byte for as long as a stall", function()
        assert.equal(0, counts:last_first_byte(A))
        counts:sent_first_byte(A, 1000.5)
        assert.equal(1000.5, counts:last_first_byte(A))
        dict.now = 60
        assert.equal(0, counts:last_first_byte(A))
    end)

    it("drops what it has of nodes that have left, and only that", function()
        local keys = #dict:get_keys()
        for _, peer in ipairs { A, B } do
            counts:chosen(peer)
            counts:sent_first_byte(peer, 1)
        end
        counts:forget({ A, B }, { B })
        assert.same({ 0, 1 }, { counts:times_chosen(A), counts:times_chosen(B) })
        assert.equal(keys + 2, #dict:get_keys())
    end)
end)
