local pending = require "vllm_nginx_lb.pending"

describe("pending", function()
    local counted, waiting

    --- A request with so many bytes at a node that needs a second for each.
    local function sent(bytes, now)
        local it = { peer = "node", pending = bytes, predicted = bytes }
        counted = counted + bytes
        waiting:expect(it, now)
        return it
    end

    before_each(function()
        counted = 0
        waiting = pending.new({
            add = function(_, _, bytes)
                counted = counted + bytes
            end,
        }, {
            follow = function() end,
            see = function() end,
        })
    end)

    it("ends when the node has probably computed the prompt", function()
        sent(3, 100)
        sent(1, 100.02)
        for _, step in ipairs { { 100.5, 4 }, { 101.2, 3 }, { 103.1, 0 } } do
            waiting:finish_due(step[1])
            assert.equal(step[2], counted)
        end
        assert.same({}, waiting.ends.slots)
    end)

    it("ends once", function()
        local it = sent(3, 100)
        waiting:finish(it)
        waiting:finish(it)
        waiting:finish_due(110)
        assert.equal(0, counted)
    end)

    it("of a stream ends with its output alone", function()
        local it = sent(3, 100)
        it.output = {}
        waiting:finish_due(500)
        assert.equal(3, counted)
        waiting:finish_all()
        assert.equal(3, counted)
        waiting:finish(it)
        assert.equal(0, counted)
    end)

    it("of a request that was sent again ends at its latest time", function()
        local it = sent(3, 100)
        it.predicted = 10
        waiting:expect(it, 101)
        waiting:finish_due(105)
        assert.equal(3, counted)
        waiting:finish_due(112)
        assert.equal(0, counted)
    end)

    it("ends however long nobody has looked, and when nobody will look again", function()
        sent(3, 100)
        waiting:finish_due(10 ^ 6)
        assert.equal(0, counted)
        sent(60, 10 ^ 6)
        waiting:finish_due(2 * 10 ^ 6)
        assert.equal(0, counted)
        sent(3, 2 * 10 ^ 6)
        waiting:finish_all()
        assert.equal(0, counted)
        sent(3, 3 * 10 ^ 6) -- its body came late
        assert.equal(0, counted)
        assert.same({}, waiting.ends.slots)
    end)
end)
