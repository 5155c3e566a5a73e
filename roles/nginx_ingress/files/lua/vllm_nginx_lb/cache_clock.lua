--- The clock by which the prompts in a node's KV cache age: the bytes of prompts and answers that the node computed for
-- requests of this host, over all workers, since nginx started. A node drops what it has cached when it needs the room
-- for what it computes.

local node_keys = require "vllm_nginx_lb.node_keys"

local COMPUTED = "computed bytes" -- of node_keys

---@class CacheClock
local CacheClock = {}
CacheClock.__index = CacheClock

local cache_clock = {}

--- Keep the sums in a dictionary.
---@param dict SharedDict
---@return CacheClock
function cache_clock.new(dict)
    return setmetatable({ dict = dict }, CacheClock)
end

--- Move a node's clock on.
---@param peer string the node's address
---@param bytes number of a prompt that the node has probably not cached, or of an answer, >= 0
function CacheClock:add(peer, bytes)
    self.dict:incr(node_keys.of(COMPUTED, peer), bytes)
end

--- The clock of a node.
---@param peer string the node's address
---@return number bytes
function CacheClock:of(peer)
    return self.dict:get(node_keys.of(COMPUTED, peer)) or 0
end

return cache_clock
