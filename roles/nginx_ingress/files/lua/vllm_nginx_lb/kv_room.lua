--- Whether the KV cache of a node has room for a request. Pure.
-- A node may have a share of its cache filled. What is filled is its usage at the last reading, and by how many
-- uncached tokens the prompts of its open requests have grown since. A node whose figures are not known has room.
-- docs/decisions.md has the measurements.

local least_work = require "vllm_nginx_lb.least_work"

local kv_room = {}

-- Where no node has room, each byte that a node lacks counts as so many pending bytes: it is taken until the answer
-- ends, a pending byte only until the first output.
local LACKING = 4

--- Set how much a node may still get until the next reading, as `kv_left`, in tokens; nil: any amount.
---@param node table with `kv_tokens`, > 0, and `kv_usage`, 0 to 1; nil where it is not known
---@param more number by how many tokens its open prompts have grown since the reading; < 0: they have shrunk
---@param share number of the cache that may be filled, 0 to 1; 0: any amount may be sent
function kv_room.set(node, more, share)
    node.kv_left = nil
    if share > 0 and node.kv_tokens and node.kv_usage then
        node.kv_left = (share - node.kv_usage) * node.kv_tokens - more
    end
end

--- Take the room of a request that is sent to a node.
---@param node table see kv_room.set
---@param count integer see kv_room.tokens
function kv_room.take(node, count)
    if node.kv_left then
        node.kv_left = node.kv_left - count
    end
end

--- How many tokens of a request's prompt a node would have to compute.
---@param request table see least_work.cost; `tokens_per_byte` of its prompt (tokens.lua)
---@param node table see least_work.cost
---@return integer tokens whole, so that sums return to exactly zero
function kv_room.tokens(request, node)
    return math.ceil(least_work.cost(request, node) * request.tokens_per_byte)
end

--- Whether a node has room for a request.
---@param node table see kv_room.set
---@param request table see kv_room.tokens
---@return boolean
function kv_room.has(node, request)
    return not node.kv_left or least_work.cost(request, node) * request.tokens_per_byte <= node.kv_left
end

--- The totals, with what nodes lack in room for a request as pending bytes.
---@return table<integer, number> totals as those of in_flight.lua, of these nodes
local function with_lack(nodes, totals, request, settings)
    local found = {}
    for i = 1, #nodes do
        local node = nodes[i]
        local slot, left = 2 * node.slot, node.kv_left or math.huge
        local lack = math.max(0, kv_room.tokens(request, node) - left) / request.tokens_per_byte
        found[slot] = totals[slot] + LACKING * lack / settings.ingresses
        found[slot + 1] = totals[slot + 1]
    end
    return found
end

--- The node with the least work of those that have room. If none has, what they lack counts as work.
---@param nodes table[] see least_work.best, also for the other parameters
---@return table|nil node nil if there is none
---@return number|nil score of the node
---@return table|nil passed_over the node that has less work, and no room
function kv_room.best(nodes, totals, request, settings, may_take, random)
    local is_any_full = false
    local found, least = least_work.best(nodes, totals, request, settings, function(node)
        if not may_take(node) then
            return false
        end
        local has_room = kv_room.has(node, request)
        is_any_full = is_any_full or not has_room
        return has_room
    end, random)
    if not is_any_full then
        return found, least
    elseif found then
        local idlest, score = least_work.best(nodes, totals, request, settings, may_take, random)
        return found, least, score < least and idlest or nil
    end
    local lacking = with_lack(nodes, totals, request, settings)
    found = least_work.best(nodes, lacking, request, settings, may_take, random)
    return found, found and least_work.score(found, totals, request, settings)
end

return kv_room
