--- How many uncached bytes of prompts were sent to each node, over all workers, since nginx started.
-- It is the clock by which a node's cached prompts age: a node drops a prompt when it needs the room for newer ones.
-- And it tells how much a node's KV cache has filled since its last scrape.

local node_keys = require "vllm_nginx_lb.node_keys"

local SENT = "sent bytes" -- of node_keys

---@class SentPrompts
local SentPrompts = {}
SentPrompts.__index = SentPrompts

local sent_prompts = {}

--- Keep the sums in a dictionary.
---@param dict SharedDict
---@return SentPrompts
function sent_prompts.new(dict)
    return setmetatable({ dict = dict }, SentPrompts)
end

--- Count a prompt that is sent to a node.
---@param peer string the node's address
---@param bytes number of the prompt that the node has probably not cached, >= 0
function SentPrompts:add(peer, bytes)
    self.dict:incr(node_keys.of(SENT, peer), bytes)
end

--- The bytes that were sent to a node so far.
---@param peer string the node's address
---@return number bytes
function SentPrompts:to(peer)
    return self.dict:get(node_keys.of(SENT, peer)) or 0
end

return sent_prompts
