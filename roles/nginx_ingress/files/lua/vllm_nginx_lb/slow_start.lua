--- Slow start: a returning node has a tenth of its weight at first, and its full weight after some time. Pure.
-- The present share of the weight is the effective weight. Work is compared per effective weight, so a node with a
-- lower one gets less work.

local slow_start = {}

local FIRST_SHARE = 0.1 -- of its weight

--- Set a node's effective weight as of now.
---@param node table `weight`, 0 to 100, and `slow_since`, seconds of clock.lua, while it is in slow start
---@param now number seconds of clock.lua
---@param seconds number how long slow start lasts
local function set_effective_weight(node, now, seconds)
    local share = 1
    if node.slow_since then
        local passed = (now - node.slow_since) / seconds
        share = math.min(1, FIRST_SHARE + (1 - FIRST_SHARE) * passed)
        if share >= 1 then
            node.slow_since = nil
        end
    end
    node.effective_weight = node.weight * share
end

--- The nodes of some pools by pool and address. Of two names of one server, this is the name that serves.
local function by_address(pools)
    local found = {}
    for name, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            local key = name .. " " .. node.peer
            if node.weight > 0 or not found[key] then
                found[key] = node
            end
        end
    end
    return found
end

--- Begin slow start for nodes that serve now and did not serve in the former list. Nodes in slow start continue.
---@param pools table by name, each with `nodes`
---@param former table|nil the pools of the former list; nil: the worker has just started, and no node is new
---@param now number seconds of clock.lua
---@param seconds number how long slow start lasts; 0: there is none
function slow_start.begin(pools, former, now, seconds)
    local before = former and by_address(former)
    for name, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            local was = before and before[name .. " " .. node.peer]
            if was and was.weight > 0 then
                node.slow_since = was.slow_since
            elseif before and seconds > 0 then
                node.slow_since = now
            end
            set_effective_weight(node, now, seconds)
        end
    end
end

--- Set the effective weight of the nodes in slow start as of now.
---@param pools table by name, each with `nodes`
---@param now number seconds of clock.lua
---@param seconds number how long slow start lasts
function slow_start.go_on(pools, now, seconds)
    for _, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            if node.slow_since then
                set_effective_weight(node, now, seconds)
            end
        end
    end
end

return slow_start
