--- No affinity: each request goes to the node with the least work. The other affinities have the same functions.

local NOTHING_CACHED = {}

---@class Affinity what sends requests to nodes that are likely to have their prompts cached
local Off = {}
Off.__index = Off

local off = {}

---@return Affinity
function off.new()
    return setmetatable({}, Off)
end

--- Add what has to read the body of a new request.
---@param request Request
---@param readers table<string, Reader> by key (json_walk.lua)
function Off.join() end

--- Note in a new request its session or its prefix marks.
---@param request Request
---@param header fun(name: string): any the value of a header, nil if there is none, a table if there are several
---@param is_whole boolean false: the body was not read to its end, or is no JSON object
---@param client fun(): string who sent it: the name of its key, or its address
function Off.prepare() end

--- How many bytes of a request's prompt each node has probably cached.
---@param request Request with `tokens_per_byte`
---@param pool table of nodes
---@return table<string, number> bytes by the node's address
function Off.cached()
    return NOTHING_CACHED
end

--- The preferred node of a request: the node of its session.
---@param request Request
---@param pool table of nodes
---@param may_take fun(node: table): boolean
---@param least number the least score of the pool's nodes
---@return table|nil node nil if the request has none
---@return number|nil limit the highest score with which the node is still preferred
function Off.preferred()
    return nil
end

--- Note which node a request is sent to.
---@param request Request
---@param node table
function Off.note() end

--- Prepare for a pool's new list of nodes.
---@param pool table
---@param former table|nil the pool as it was before
function Off.on_nodes() end

return off
