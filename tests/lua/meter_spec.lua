local meter = require "vllm_nginx_lb.meter"

describe("meter", function()
    it("writes the time to the first output as nginx writes its own times", function()
        assert.are.equal("0.000", meter.first_output_time(12.5, 12.5))
        assert.are.equal("1.250", meter.first_output_time(13.75, 12.5))
        assert.are.equal("0.000", meter.first_output_time(12.5, 13.75)) -- the clock was set back
    end)
end)
