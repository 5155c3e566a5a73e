--- Measurements of a request: the time to its first output. Pure.

local meter = {}

--- The time to the first output of the answer (output.lua), for $vllm_nginx_lb_first_byte_time. Where the answer is
-- streamed, this is the time to first token (TTFT).
---@param now number Unix seconds
---@param started number Unix seconds, when nginx read the first byte of the request
---@return string seconds with three digits, as nginx writes its own times; not below 0, as the clock may be set back
function meter.first_output_time(now, started)
    return ("%.3f"):format(math.max(0, now - started))
end

return meter
