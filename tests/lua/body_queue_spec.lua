local body_queue = require "vllm_nginx_lb.body_queue"

--- A semaphore that gives no place to those that wait.
local function new_semaphore(count)
    return {
        count = function()
            return count
        end,
        wait = function(_, seconds)
            count = count - 1
            if count >= 0 then
                return true
            end
            return nil, "timeout after " .. seconds
        end,
        post = function(_, places)
            count = count + places
        end,
    }
end

describe("body queue", function()
    local queue, settings

    before_each(function()
        settings = { bodies_at_once = 2, bodies_waiting = 1, body_wait_seconds = 5 }
        queue = body_queue.new(settings, new_semaphore)
    end)

    it("lets in as many at once as the setting says", function()
        assert.is_true(queue:enter "a")
        assert.is_true(queue:enter "a")
        assert.is_false(queue:enter "a") -- after the wait
    end)

    it("turns away at once whoever finds it full", function()
        for _ = 1, 3 do
            queue:enter "a"
        end
        local before = queue.places:count()
        assert.is_false(queue:enter "a")
        assert.equal(before, queue.places:count())
    end)

    it("lets in at once where nobody may wait", function()
        settings.bodies_waiting = 0
        assert.is_true(queue:enter "a")
        assert.is_true(queue:enter "a")
        assert.is_false(queue:enter "a")
    end)

    it("gives each client a quarter of the queue", function()
        settings.bodies_at_once, settings.bodies_waiting = 1, 8
        local waits = {}
        queue = body_queue.new(settings, function(count)
            local it = new_semaphore(count)
            it.wait = function()
                count = count - 1
                if count < 0 then
                    coroutine.yield()
                end
                return true
            end
            it.count = function()
                return count
            end
            return it
        end)
        local function enter(client)
            local it = coroutine.create(function()
                return queue:enter(client)
            end)
            waits[#waits + 1] = it
            local _, done = coroutine.resume(it)
            return done
        end
        assert.is_true(enter "a") -- there was a place
        assert.same({}, { enter "a", enter "a" })
        assert.is_false(enter "a")
        assert.is_nil(enter "b")
        assert.same({ a = 2, b = 1 }, queue.waiting)
        coroutine.resume(waits[2])
        queue:stop_waiting "a" -- the request of waits[3] has ended
        queue:stop_waiting "b"
        assert.same({}, queue.waiting)
    end)

    it("has a place again when one has left", function()
        queue:enter "a"
        queue:enter "a"
        queue:leave()
        assert.is_true(queue:enter "a")
    end)
end)
