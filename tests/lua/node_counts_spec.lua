local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "[2001:db8::3]:8000"

describe("node_counts", function()
    local dict, counts

    before_each(function()
        dict = new_dict()
        counts = node_counts.new(shared_dict.open(dict, { name = "test" }))
    end)

    it("counts choices", function()
        counts:chosen(A)
        counts:chosen(A)
        assert.same({ 2, 0 }, { counts:times_chosen(A), counts:times_chosen(B) })
    end)

    it("knows the last output, whatever the wall clock says", function()
        assert.equal(0, counts:last_output(A))
        counts:note_output(A, 1000.5)
        dict.now = 3600
        assert.equal(1000.5, counts:last_output(A))
    end)

    it("adds up how long first outputs took, as predicted and as seen", function()
        assert.same({ 0, 0, 0 }, { counts:first_outputs(A) })
        counts:first_output(A, 2, 0.5)
        counts:first_output(A, 1, 0.75)
        assert.same({ 2, 3, 1.25 }, { counts:first_outputs(A) })
        assert.same({ 0, 0, 0 }, { counts:first_outputs(B) })
    end)

    it("counts answers and ejections, and how many were bad", function()
        counts:answered(A, "2xx")
        counts:answered(A, "left")
        assert.equal(0, counts:bad_answers())
        counts:answered(A, "404")
        counts:answered(A, "404")
        counts:ejected(A, "refusals")
        assert.equal(2, counts:bad_answers())
        assert.same({ "2xx", "404", "left" }, counts:labels())
        assert.same({ 2, 0, 1, 0 }, {
            counts:times_answered(A, "404"),
            counts:times_answered(B, "404"),
            counts:times_ejected(A, "refusals"),
            counts:times_ejected(A, "broken"),
        })
    end)

    it("knows for a minute whose requests a node has refused", function()
        counts:refused(A, 1000, 50)
        counts:refused(A, 1001, 50)
        local function refused(peer, place, now)
            return counts:has_refused(peer, place, now)
        end
        assert.same({ true, true }, { refused(A, 1000, 109), refused(A, 1001, 109) })
        assert.same({ false, false, false }, { refused(B, 1000, 51), refused(A, 1002, 51), refused(A, 1000, 110) })
    end)

    it("drops what it has of nodes that have left, and only that", function()
        counts:answered(B, "2xx")
        counts:chosen(B)
        local keys = #dict:get_keys()
        for _, peer in ipairs { A, B } do
            counts:chosen(peer)
            counts:note_output(peer, 1)
            counts:first_output(peer, 1, 1)
            counts:answered(peer, "2xx")
            counts:ejected(peer, "broken")
        end
        counts:keep_only { B }
        assert.same({ 0, 0, 2, 0, 2 }, {
            (counts:first_outputs(A)),
            counts:times_chosen(A),
            counts:times_chosen(B),
            counts:times_answered(A, "2xx"),
            counts:times_answered(B, "2xx"),
        })
        assert.equal(keys + 5, #dict:get_keys())
    end)
end)
