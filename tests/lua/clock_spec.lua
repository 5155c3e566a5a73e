local clock = require "vllm_nginx_lb.clock"

describe("clock", function()
    it("counts from the host's start and never back", function()
        local uptime = tonumber(io.open("/proc/uptime"):read "*n")
        local first = clock.now()
        assert.is_true(math.abs(first - uptime) < 60)
        for _ = 1, 1000 do
            local second = clock.now()
            assert.is_true(second >= first)
            first = second
        end
    end)
end)
