--- A clock that nobody sets: seconds since the host started, the same in all workers. The wall clock (ngx.now, and the
-- times after which a shared dictionary forgets) jumps when an operator or NTP sets it. clock_gettime(2).

local ffi = require "ffi"

ffi.cdef [[
    struct vllm_nginx_lb_time { long seconds; long nanoseconds; };
    int clock_gettime(int clock, struct vllm_nginx_lb_time *time);
]]

local MONOTONIC = 1 -- CLOCK_MONOTONIC of Linux

local read = ffi.new "struct vllm_nginx_lb_time"

local clock = {}

--- Seconds since the host started, to the nanosecond.
---@return number
function clock.now()
    ffi.C.clock_gettime(MONOTONIC, read)
    return tonumber(read.seconds) + tonumber(read.nanoseconds) / 1e9
end

return clock
