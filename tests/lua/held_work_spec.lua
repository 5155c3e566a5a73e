local held_work = require "vllm_nginx_lb.held_work"

describe("held work", function()
    local now, bytes, held

    before_each(function()
        now, bytes = 100, {}
        local in_flight = {
            add = function(_, peer, more, streams)
                assert.equal(0, streams)
                bytes[peer] = (bytes[peer] or 0) + more
            end,
        }
        local prefill = {
            seconds = function(_, _, ahead)
                return ahead / 100
            end,
        }
        held = held_work.new(in_flight, prefill, 1000, function()
            return now
        end)
    end)

    local function failed(sent_at, peer)
        held:hold({ peer = peer or "a:1", sent_at = sent_at, cost = 50, ahead = 50, pool = { name = "p" } }, true)
    end

    --- How long it takes, in steps, until all is released.
    local function seconds_until_zero()
        local began = now
        repeat
            now = now + 0.5
            held:release()
        until bytes["a:1"] == 0 or now > began + 100
        return now - began
    end

    it("lasts as long as a good answer would have", function()
        held:learn("p", 4)
        failed(98)
        assert.equal(1000, bytes["a:1"]) -- the prompt would be computed by now
        assert.equal(2, seconds_until_zero())
        assert.same({}, held.steps)
    end)

    it("has the prompt until it would be computed, at most ten seconds", function()
        held:learn("p", 600)
        for ahead, seconds in pairs { [50] = 0.5, [300] = 3, [99999] = 10 } do
            bytes, held.steps = {}, {}
            held:hold({ peer = "a:1", sent_at = now, cost = 50, ahead = ahead, pool = { name = "p" } }, true)
            assert.equal(1050, bytes["a:1"])
            local began = now
            repeat
                now = now + 0.5
                held:release()
            until bytes["a:1"] ~= 1050
            assert.equal(seconds, now - began)
        end
    end)

    it("is the open stream alone where the node has refused the request", function()
        held:hold({ peer = "a:1", sent_at = now, cost = 50, ahead = 50, pool = { name = "p" } }, false)
        assert.equal(1000, bytes["a:1"])
    end)

    it("lasts a second where no good answer is known, and ten at most", function()
        failed(100)
        assert.equal(1, seconds_until_zero())
        held:learn("p", 600)
        failed(now)
        assert.equal(10, seconds_until_zero())
    end)

    it("follows the mean of good answers", function()
        held:learn("p", 1)
        held:learn("p", 2)
        assert.is_true(math.abs(1.1 - held.mean_seconds.p) < 1e-9)
    end)

    it("is nothing where the error came later than a good answer", function()
        held:learn("p", 4)
        failed(95)
        assert.is_nil(bytes["a:1"])
    end)

    it("is few entries, however many requests fail", function()
        for _ = 1, 1000 do
            failed(100)
        end
        assert.equal(1050 * 1000, bytes["a:1"])
        assert.same({ [201] = { ["a:1"] = 50 * 1000 }, [202] = { ["a:1"] = 1000 * 1000 } }, held.steps)
    end)

    it("ends with its worker, and does not begin again", function()
        failed(100)
        held:release(true)
        failed(100)
        assert.equal(0, bytes["a:1"])
    end)
end)
