--- The format of readings.json: how large and how full the KV caches of the nodes are. Pure.
-- The script's user without privileges writes this file, so nothing in it is believed before it is checked. A file is
-- accepted as a whole or not at all.

local readings_format = { VERSION = 1 }

local MAX_TOKENS = 2 ^ 53
local MAX_SECONDS = 2 ^ 53 -- since 1970
local SHORTEST, LONGEST = 0.1, 86400 -- s, of an interval

local function is_number(value, low, high)
    return type(value) == "number" and value >= low and value <= high -- false for NaN
end

--- What is wrong with a node, or nil.
local function node_problem(peer, node)
    if type(peer) ~= "string" or type(node) ~= "table" then
        return "expected an object for each address"
    elseif node.kv_tokens ~= nil and not is_number(node.kv_tokens, 1, MAX_TOKENS) then
        return "kv_tokens: expected 1 to 2^53"
    elseif node.kv_usage ~= nil and not is_number(node.kv_usage, 0, 1) then
        return "kv_usage: expected 0 to 1"
    end
    return nil
end

---@class ReadingsContent
---@field decided_at_seconds number Unix seconds, of the tick
---@field interval_seconds number after which the next file is due
---@field nodes table<string, table> by address: `kv_tokens`, >= 1, how many tokens the KV cache holds, and `kv_usage`,
--- 0 to 1; nil where it is not known

--- Read the file's content.
---@param content any its JSON, decoded
---@return ReadingsContent|nil
---@return string|nil problem the place of the fault, and what is expected there
function readings_format.read(content)
    if type(content) ~= "table" or content.version ~= readings_format.VERSION then
        return nil, "version: expected " .. readings_format.VERSION
    elseif not is_number(content.interval_seconds, SHORTEST, LONGEST) then
        return nil, ("interval_seconds: expected %s to %s"):format(SHORTEST, LONGEST)
    elseif not is_number(content.decided_at_seconds, 0, MAX_SECONDS) then
        return nil, "decided_at_seconds: expected 0 to 2^53"
    elseif type(content.nodes) ~= "table" then
        return nil, "nodes: expected an object"
    end
    local found = { nodes = {} }
    found.decided_at_seconds, found.interval_seconds = content.decided_at_seconds, content.interval_seconds
    for peer, node in pairs(content.nodes) do
        local problem = node_problem(peer, node)
        if problem then
            return nil, "nodes: " .. problem
        end
        found.nodes[peer] = { kv_tokens = node.kv_tokens, kv_usage = node.kv_usage }
    end
    return found
end

return readings_format
