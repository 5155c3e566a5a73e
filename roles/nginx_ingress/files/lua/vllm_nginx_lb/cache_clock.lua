--- The clock by which the prompts in a node's KV cache age: the tokens of prompts and answers that the node computed
-- for requests of this host, over all workers, since nginx started. A node drops what it has cached when it needs the
-- room for what it computes.

local node_keys = require "vllm_nginx_lb.node_keys"

local COMPUTED = "computed tokens" -- of node_keys; former releases count bytes, under another key

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
---@param count integer tokens of a prompt that the node has probably not cached, or of an answer, >= 0
function CacheClock:add(peer, count)
    self.dict:incr(node_keys.of(COMPUTED, peer), count)
end

--- The clock of a node.
---@param peer string the node's address
---@return integer tokens
function CacheClock:of(peer)
    return self.dict:get(node_keys.of(COMPUTED, peer)) or 0
end

return cache_clock
