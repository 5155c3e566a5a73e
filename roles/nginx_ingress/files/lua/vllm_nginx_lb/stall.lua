--- Stalled nodes: such a node has sent headers, and then no output to any client for `stall_seconds`.

local stall = {}

---@class StallParts
---@field settings table `stall_seconds`
---@field ejection Ejection
---@field counts NodeCounts
---@field now fun(): number seconds of clock.lua

--- Eject the nodes at which a request shows that they have stalled.
---@param open_requests table<any, Request>
---@param parts StallParts
function stall.eject(open_requests, parts)
    local now = parts.now()
    for _, it in pairs(open_requests) do
        if it.stage == "headers" then
            local moved_at = math.max(it.sent_at, parts.counts:last_output(it.peer))
            if now - moved_at > parts.settings.stall_seconds then
                parts.ejection:failed(it.peer, "stalled", it.pool)
            end
        end
    end
end

return stall
