--- Choose the node with the least outstanding work. Pure: no clock, no nginx.
--
-- The work of a node, per unit of what it can do, is what it has promised and not begun (prompt bytes of requests that
-- have had no first body byte) and what it goes on with (open streams, each worth `stream_bytes`):
--
--     (ingresses * (pending_bytes + stream_bytes * streams) + bytes) / capacity
--
-- One of several ingresses sees what went through itself, and takes it that the others do the same (`ingresses`).
-- `bytes` is the new request's prompt, without what the node is likely to have cached of it: affinity in the unit of
-- work, which a node with less to do outweighs.
--
-- docs/decisions.md says what that was measured against.

local choose = {}

-- What is cached saves more than its bytes: on another node it would take the place of something else.
local CACHED = 2

--- The bytes of a request less so many times what a node has cached of it: nothing, while it comes back.
local function uncached(request, node, times)
    local cached = not node.since and request.cached[node.peer] or 0
    return math.max(0, request.bytes - times * cached)
end

--- The bytes of a request that a node would have to begin with.
-- @tparam table request `bytes` of its prompt, >= 0, and `cached` of them by peer (see prefix.lua)
-- @tparam table node with `peer`, and `since` while it comes back
function choose.cost(request, node)
    return uncached(request, node, 1)
end

--- The work a node would have with one more request.
-- @tparam table node with `capacity`, > 0, `peer`, and `slot` (its place in `totals`)
-- @param totals by slot, from 0: pending bytes at 2 * slot, streams behind it (see ledger.lua)
-- @tparam table request see choose.cost
-- @tparam table settings `stream_bytes`: what one open stream costs, in bytes of prompt, >= 0; `ingresses`, >= 1
-- @treturn number bytes per unit of capacity
function choose.score(node, totals, request, settings)
    local slot = 2 * node.slot
    local known = totals[slot] + settings.stream_bytes * totals[slot + 1]
    return (settings.ingresses * known + uncached(request, node, CACHED)) / node.capacity
end

--- The best of some nodes; ties at random.
-- @tparam table nodes see choose.score; one with a capacity of 0 serves nobody
-- @param totals see choose.score
-- @tparam table request see choose.cost
-- @tparam table settings see choose.score
-- @tparam function usable called with a node that would be best: whether it may be taken
-- @tparam function random called with n: an integer from 1 to n
-- @treturn ?table the node, or nil if there is none
-- @treturn ?number its score
function choose.best(nodes, totals, request, settings, usable, random)
    local best, found, ties = math.huge, nil, 0
    for i = 1, #nodes do
        local node = nodes[i]
        if node.capacity > 0 then
            local score = choose.score(node, totals, request, settings)
            if score < best then
                if usable(node) then
                    best, found, ties = score, node, 1
                end
            elseif score == best and usable(node) then
                ties = ties + 1
                if random(ties) == 1 then
                    found = node
                end
            end
        end
    end
    return found, found and best
end

return choose
