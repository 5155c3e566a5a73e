--- Measurements of a request: the time to its first byte. Pure.

local meter = {}

--- The time to the first byte of the answer's body, for $vllm_nginx_lb_first_byte_time. Where the answer is streamed,
-- this is the time to first token (TTFT).
---@param now number Unix seconds
---@param started number Unix seconds, when nginx read the first byte of the request
---@return string seconds with three digits, as nginx writes its own times
function meter.first_byte_time(now, started)
    return ("%.3f"):format(now - started)
end

return meter
