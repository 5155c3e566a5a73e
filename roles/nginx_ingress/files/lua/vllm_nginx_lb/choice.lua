--- The node that a request is sent to, and why: the node of its session, or the node with the least work of those that
-- are not ejected and have room in their KV caches.

local kv_room = require "vllm_nginx_lb.kv_room"
local least_work = require "vllm_nginx_lb.least_work"

local NOBODY = {}

---@class Choice
local Choice = {}
Choice.__index = Choice

local choice = {}

---@class ChoiceParts
---@field settings table see least_work.score
---@field ejection Ejection
---@field affinity Affinity
---@field full FullNodes
---@field counts NodeCounts
---@field random fun(n: integer): integer from 1 to n

---@param parts ChoiceParts
---@return Choice
function choice.new(parts)
    return setmetatable({ parts = parts }, Choice)
end

--- Whether a node may get one more request.
local function has_room(node, totals)
    return node.max_conns == 0 or totals[2 * node.slot + 1] < node.max_conns
end

--- Whether a node may get this request and has not had it.
local function is_untried(request, node, totals)
    return not request.tried[node.peer] and has_room(node, totals)
end

--- Whether a pool has a node in rotation that is not ejected.
local function has_live(nodes, is_out)
    for i = 1, #nodes do
        if nodes[i].effective_weight > 0 and not is_out[nodes[i].peer] then
            return true
        end
    end
    return false
end

--- Choose when no live node may take the request. Ejected nodes get it only where all are ejected: the node with the
-- least work is the best guess then. When each node was tried, there is one more try, because a node may have closed
-- an idle connection.
function Choice:last_resort(request, nodes, totals, is_out)
    local settings, random = self.parts.settings, self.parts.random
    local spared = has_live(nodes, is_out) and is_out or NOBODY
    local node = least_work.best(nodes, totals, request, settings, function(candidate)
        return not spared[candidate.peer] and is_untried(request, candidate, totals)
    end, random)
    if not node and not request.is_tried_again and next(request.tried) then
        request.is_tried_again = true
        node = least_work.best(nodes, totals, request, settings, function(candidate)
            return not spared[candidate.peer] and has_room(candidate, totals)
        end, random)
    end
    return node, "last resort"
end

--- The check of nodes for an affinity: only nodes with room in their KV caches, as long as there are any.
local function with_room(may_take, request, node)
    if not kv_room.has(node, request) then
        return may_take
    end
    return function(candidate)
        return may_take(candidate) and kv_room.has(candidate, request)
    end
end

--- Why the node with the least work gets a request.
local function reason(request, node, passed_over)
    if passed_over then
        return "least work, with KV room"
    end
    return request.cached[node.peer] and "least work, cached prefix" or "least work"
end

--- Choose a node for a request. Nodes whose KV caches have no room come after the others, and nodes that have said
-- lately that they are full come last.
---@param request Request with `bytes`, `cached` and `tried`
---@param pool table its `nodes`
---@param totals number[] in_flight.lua
---@return table|nil node nil if there is none
---@return string why as $vllm_nginx_lb_choice has it
function Choice:pick(request, pool, totals)
    local settings, affinity, random = self.parts.settings, self.parts.affinity, self.parts.random
    local is_out, is_full = self.parts.ejection:out(), self.parts.full:lately()
    local function may_take(node)
        return not is_out[node.peer] and not is_full[node.peer] and is_untried(request, node, totals)
    end
    local node, least, passed_over = kv_room.best(pool.nodes, totals, request, settings, may_take, random)
    if not node and next(is_full) then
        is_full = NOBODY
        node, least, passed_over = kv_room.best(pool.nodes, totals, request, settings, may_take, random)
    end
    if not node then
        return self:last_resort(request, pool.nodes, totals, is_out)
    elseif passed_over then
        self.parts.counts:passed_over(passed_over.peer)
    end
    local preferred, limit = affinity:preferred(request, pool, with_room(may_take, request, node), least)
    if not preferred then
        return node, reason(request, node, passed_over)
    elseif least_work.score(preferred, totals, request, settings) <= limit then
        return preferred, "affinity"
    end
    return node, "least work, off its affinity"
end

--- Whether a node is left that may get a request and has not had it; ejected ones only where all are ejected.
---@param request Request see Choice:pick
---@param pool table its `nodes`
---@param totals number[] in_flight.lua
---@return boolean
function Choice:has_untried(request, pool, totals)
    local nodes, is_out = pool.nodes, self.parts.ejection:out()
    local spared = next(is_out) and has_live(nodes, is_out) and is_out or NOBODY
    for i = 1, #nodes do
        local node = nodes[i]
        if node.effective_weight > 0 and not spared[node.peer] and is_untried(request, node, totals) then
            return true
        end
    end
    return false
end

return choice
