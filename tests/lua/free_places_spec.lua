local free_places = require "vllm_nginx_lb.free_places"

describe("free places", function()
    local now, places

    before_each(function()
        now = 100
        places = free_places.new {
            workers = 2,
            now = function()
                return now
            end,
        }
    end)

    --- Let requests of a pool end, one every so many seconds.
    local function end_every(seconds, times)
        for _ = 1, times do
            now = now + seconds
            places:freed "a"
        end
    end

    it("are expected at once where nothing is known", function()
        assert.equal(1, places:seconds "a")
        places:freed "a"
        assert.equal(1, places:seconds "a")
    end)

    it("are booked one after the other", function()
        end_every(4, 3) -- and as many in the other worker
        assert.same({ 2, 4, 6 }, { places:seconds "a", places:seconds "a", places:seconds "a" })
        now = now + 4
        assert.equal(4, places:seconds "a")
    end)

    it("follow a pool that becomes faster", function()
        end_every(40, 3)
        end_every(0.1, 50)
        assert.equal(1, places:seconds "a")
    end)

    it("are late when nothing ends any more", function()
        end_every(1, 3)
        now = now + 30
        assert.equal(15, places:seconds "a")
    end)

    it("are never further away than a minute", function()
        end_every(50, 3)
        for _ = 1, 10 do
            places:seconds "a"
        end
        assert.equal(60, places:seconds "a")
    end)

    it("are counted for each pool", function()
        end_every(40, 3)
        assert.equal(1, places:seconds "b")
    end)
end)
