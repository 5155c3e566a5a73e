--- How many uncached bytes the prompts of the open requests of each node have, over all workers.
-- Only how far this has changed since a reading counts (readings.lua), so what a worker that dies leaves behind counts
-- no longer than until the next reading.

local node_keys = require "vllm_nginx_lb.node_keys"

local OPEN = "open bytes" -- of node_keys

---@class OpenPrompts
local OpenPrompts = {}
OpenPrompts.__index = OpenPrompts

local open_prompts = {}

--- Keep the sums in a dictionary.
---@param dict SharedDict
---@return OpenPrompts
function open_prompts.new(dict)
    return setmetatable({ dict = dict }, OpenPrompts)
end

--- Count a prompt at a node, or take it off.
---@param peer string the node's address
---@param bytes number of the prompt that the node has probably not cached; < 0: its request has ended
function OpenPrompts:add(peer, bytes)
    self.dict:incr(node_keys.of(OPEN, peer), bytes)
end

--- The bytes at a node; any number, as only its changes count.
---@param peer string the node's address
---@return number bytes
function OpenPrompts:at(peer)
    return self.dict:get(node_keys.of(OPEN, peer)) or 0
end

return open_prompts
