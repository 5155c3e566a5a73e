local progress = require "vllm_nginx_lb.progress"

local SPEED = 10000 -- bytes per second
local NODE, OTHER = "127.0.0.2:8000", "127.0.0.3:8000"

describe("progress", function()
    local counted, written, steps

    before_each(function()
        counted, written = { [NODE] = 0, [OTHER] = 0 }, 0
        steps = progress.new({
            add = function(_, peer, bytes)
                counted[peer], written = counted[peer] + bytes, written + 1
            end,
        }, {
            line = function()
                return 0, 1 / SPEED
            end,
        })
    end)

    --- Send a prompt of so many bytes.
    local function sent(bytes, now, peer)
        peer = peer or NODE
        counted[peer] = counted[peer] + bytes
        local it = { peer = peer, pending = bytes, ahead = counted[peer] }
        steps:follow(it, now)
        return it
    end

    --- The first output of a request has come.
    local function finish(it)
        counted[it.peer], it.pending = counted[it.peer] - it.pending, 0
    end

    --- Let the time pass, with a look at the end of each 50 ms.
    local function pass(from, to)
        for slot = math.ceil(from * 20), math.floor(to * 20) do
            steps:see(slot / 20)
        end
    end

    it("of a long prompt counts in eight parts, and the last one is pending until the first output", function()
        local it = sent(40000, 100)
        local cases = { { 100.4, 40000 }, { 100.6, 35000 }, { 102.3, 20000 }, { 103.7, 5000 }, { 200, 5000 } }
        for _, case in ipairs(cases) do
            pass(100, case[1])
            assert.equal(case[2], counted[NODE], case[1])
        end
        assert.equal(5000, it.pending)
        finish(it)
        pass(200, 201)
        assert.equal(0, counted[NODE])
        assert.same({}, steps.looks.slots)
    end)

    it("is that of the oldest prompt of a node alone, from when the work ahead of it is probably done", function()
        local first, second = sent(40000, 100), sent(20000, 100)
        local other = sent(16000, 100, OTHER)
        pass(100, 103.9)
        assert.equal(5000 + 20000, counted[NODE])
        assert.equal(2000, counted[OTHER])
        pass(103.9, 110) -- the first one takes longer than expected
        assert.equal(5000 + 20000, counted[NODE])
        finish(first)
        pass(110, 112.5)
        assert.is_true(second.pending < 10000 and second.pending >= 2500)
        finish(second)
        finish(other)
        pass(112.5, 114)
        assert.same({ [NODE] = 0, [OTHER] = 0 }, counted)
        assert.same({}, steps.looks.slots)
    end)

    it("is none while other work is ahead", function()
        counted[NODE] = 30000 -- of other workers
        local it = sent(40000, 100)
        pass(100, 103)
        assert.equal(40000, it.pending)
        pass(103, 105.1)
        assert.equal(20000, it.pending)
    end)

    for name, bytes in pairs { ["few bytes"] = 8191, ["a short time"] = 3900 } do
        it("is none of a prompt with " .. name, function()
            local it = sent(bytes, 100)
            pass(100, 110)
            assert.equal(bytes, it.pending)
            assert.equal(0, written)
        end)
    end

    it("ends when a request is sent again, or ends", function()
        local it = sent(40000, 100)
        pass(100, 101.1)
        finish(it)
        it.peer, it.pending, it.ahead, counted[OTHER] = OTHER, 40000, 40000, 40000
        steps:follow(it, 101.1)
        pass(101.1, 103.2)
        assert.equal(0, counted[NODE])
        assert.equal(20000, counted[OTHER])
        it.peer = nil
        it.pending = 0
        pass(103.2, 110)
        assert.equal(20000, counted[OTHER])
        assert.same({}, steps.looks.slots)
    end)

    it("goes on however long nobody has looked", function()
        local it = sent(40000, 100)
        steps:see(10 ^ 6)
        assert.equal(40000, it.pending) -- when the node has begun it is not known
        pass(10 ^ 6, 10 ^ 6 + 5)
        assert.equal(5000, it.pending)
        finish(it)
        pass(10 ^ 6 + 5, 10 ^ 6 + 6)
        assert.same({}, steps.looks.slots)
        assert.same({}, steps.queues)
    end)

    it("keeps nothing of prompts that have ended behind one that has not", function()
        local first = sent(40000, 100)
        for i = 1, 50 do
            finish(sent(40000, 100 + i / 10))
        end
        pass(100, 300)
        local queue = steps.queues[NODE]
        assert.equal(first, queue.first.it)
        assert.equal(queue.first, queue.last)
        local last = sent(8192, 300)
        assert.equal(last, queue.last.it)
        finish(first)
        pass(300, 310)
        assert.equal(1024, last.pending)
        finish(last)
        pass(310, 320)
        assert.same({}, steps.queues)
        assert.same({}, steps.looks.slots)
    end)

    it("costs few writes", function()
        sent(400000, 100)
        pass(100, 200)
        assert.equal(7, written)
    end)
end)
