--- How many nodes of a pool may be out at the same time. Pure.

-- No request can bring this about. Nodes that cannot be reached are left out however many they are.
local CERTAIN = { unreachable = true }

local ejection_limit = { CERTAIN = CERTAIN }

--- Whether a node gets no requests by its record.
---@param record EjectionRecord|nil
---@param now number seconds of clock.lua
---@return boolean
function ejection_limit.is_out(record, now)
    return record ~= nil and now < math.max(record.ends, record.trial)
end

--- Whether a node of a pool may be out beside those that are. The most is a share of the nodes that serve, but at least
-- one node, and never all of them. Nodes that cannot be reached are not counted in the share. A node whose trial has
-- failed is no exception: while it waited for the trial, another node may have been ejected.
---@param peer string address of the node
---@param nodes table[] of the pool
---@param records table<string, EjectionRecord> by address
---@param most_percent number the share
---@param now number seconds of clock.lua
---@return boolean
function ejection_limit.has_room(peer, nodes, records, most_percent, now)
    local serving, out, gone = 0, 0, 0
    for _, node in ipairs(nodes) do
        local record = records[node.peer]
        if node.effective_weight > 0 then
            serving = serving + 1
            if node.peer ~= peer and ejection_limit.is_out(record, now) then
                local is_gone = CERTAIN[record.cause]
                out, gone = out + (is_gone and 0 or 1), gone + (is_gone and 1 or 0)
            end
        end
    end
    local most = math.max(1, math.floor(serving * most_percent / 100))
    return out < most and out + gone < serving - 1
end

return ejection_limit
