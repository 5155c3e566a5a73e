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
        assert.is_true(queue:enter())
        assert.is_true(queue:enter())
        assert.is_false(queue:enter()) -- after the wait
    end)

    it("turns away at once whoever finds it full", function()
        for _ = 1, 3 do
            queue:enter()
        end
        local before = queue.places:count()
        assert.is_false(queue:enter())
        assert.equal(before, queue.places:count())
    end)

    it("lets in at once where nobody may wait", function()
        settings.bodies_waiting = 0
        assert.is_true(queue:enter())
        assert.is_true(queue:enter())
        assert.is_false(queue:enter())
    end)

    it("has a place again when one has left", function()
        queue:enter()
        queue:enter()
        queue:leave()
        assert.is_true(queue:enter())
    end)
end)
