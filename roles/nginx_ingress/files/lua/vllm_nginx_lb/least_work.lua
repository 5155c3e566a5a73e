--- The node with the least in-flight work. Pure: no clock, no nginx.
-- A node has a score: its in-flight work and the new request, per effective weight. In-flight work is the prompt bytes
-- of requests without a first body byte, and `stream_bytes` for each open stream:
--
--     (ingresses * (pending_bytes + stream_bytes * streams) + bytes) / effective_weight
-- Each of several ingresses sees only its own requests, and assumes that the others send as many (`ingresses`). `bytes`
-- is the new request's prompt, less what the node has probably cached of it. So another node gets the request if its
-- work is less by more than that.
-- docs/decisions.md has the measurements.

local least_work = {}

-- A cached byte counts more than once: on another node the prompt would displace other cached prompts.
local CACHED = 2

-- Of a body that nobody has looked into, so many bytes count at most: the rest of a longer one is probably an image, or
-- cached.
local MOST_UNSEEN_BYTES = 64 * 1024

--- The bytes that a request's prompt counts, cached ones included.
---@param request table `prompt_bytes` of its prompt, if its body was looked into
---@param body_bytes number of its whole body
---@return number bytes
function least_work.prompt_bytes(request, body_bytes)
    return request.prompt_bytes or math.min(body_bytes, MOST_UNSEEN_BYTES)
end

--- The bytes of a request less a multiple of what a node has cached of it. A node in slow start has nothing cached.
local function uncached(request, node, times)
    local cached = not node.slow_since and request.cached[node.peer] or 0
    return math.max(0, request.bytes - times * cached)
end

--- The bytes of a request's prompt that a node would have to compute.
---@param request table `bytes` of its prompt, >= 0, and `cached`: of these by the node's address (affinity/prefix.lua)
---@param node table with `peer`, its address, and `slow_since` while it is in slow start
---@return number bytes
function least_work.cost(request, node)
    return uncached(request, node, 1)
end

--- The score of a node: its work with one more request, per effective weight.
---@param node table with `effective_weight`, > 0, `peer`, and `slot`, its place in `totals`
---@param totals number[] pending bytes at 2 * slot, streams at 2 * slot + 1 (in_flight.lua)
---@param request table see least_work.cost
---@param settings table `stream_bytes`: what one open stream costs, in bytes of prompt, >= 0; `ingresses`, >= 1
---@return number score in bytes per unit of weight
function least_work.score(node, totals, request, settings)
    local slot = 2 * node.slot
    local known = totals[slot] + settings.stream_bytes * totals[slot + 1]
    return (settings.ingresses * known + uncached(request, node, CACHED)) / node.effective_weight
end

--- The node with the lowest score; ties at random.
---@param nodes table[] see least_work.score; one with an effective weight of 0 serves nobody
---@param totals number[] see least_work.score
---@param request table see least_work.cost
---@param settings table see least_work.score
---@param may_take fun(node: table): boolean false: leave the node out; called only for a node that would be best
---@param random fun(n: integer): integer from 1 to n
---@return table|nil node nil if there is none
---@return number|nil score of the node
function least_work.best(nodes, totals, request, settings, may_take, random)
    local best, found, ties = math.huge, nil, 0
    for i = 1, #nodes do
        local node = nodes[i]
        if node.effective_weight > 0 then
            local score = least_work.score(node, totals, request, settings)
            if score < best then
                if may_take(node) then
                    best, found, ties = score, node, 1
                end
            elseif score == best and may_take(node) then
                ties = ties + 1
                if random(ties) == 1 then
                    found = node
                end
            end
        end
    end
    return found, found and best
end

return least_work
