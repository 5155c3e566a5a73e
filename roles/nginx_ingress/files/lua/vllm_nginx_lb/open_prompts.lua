--- How many uncached tokens the prompts of the open requests of each node have, over all workers.
-- Only the change since a reading counts (readings.lua), so what a worker that dies has left here stops to count at the
-- next reading.

local node_keys = require "vllm_nginx_lb.node_keys"

local OPEN = "open tokens" -- of node_keys; former releases count bytes, under another key

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
---@param count integer tokens of the prompt that the node has probably not cached; < 0: its request has ended
function OpenPrompts:add(peer, count)
    self.dict:incr(node_keys.of(OPEN, peer), count)
end

--- The tokens at a node; any number, as only its changes count.
---@param peer string the node's address
---@return integer tokens
function OpenPrompts:at(peer)
    return self.dict:get(node_keys.of(OPEN, peer)) or 0
end

return open_prompts
