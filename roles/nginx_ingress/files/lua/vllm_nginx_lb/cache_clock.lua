--- The clock by which the prompts in a node's KV cache age: the tokens of prompts and answers that the node computed
-- for requests of this host, over all workers, since nginx started. A node drops what it has cached when it needs the
-- room for what it computes.

local node_keys = require "vllm_nginx_lb.node_keys"

local COMPUTED = "computed tokens" -- of node_keys; former releases count bytes, under another key
-- A clock begins at so many tokens for each second of clock.lua, more than a node computes. So a node that has left the
-- list and returns has a clock beyond all its former ones, and their marks count no longer.
local BEGINS_AT = 2 ^ 20

---@class CacheClock
local CacheClock = {}
CacheClock.__index = CacheClock

local cache_clock = {}

--- Keep the sums in a dictionary.
---@param dict SharedDict
---@param now fun(): number seconds of clock.lua
---@return CacheClock
function cache_clock.new(dict, now)
    return setmetatable({ dict = dict, now = now }, CacheClock)
end

--- Move a node's clock on.
---@param peer string the node's address
---@param count integer tokens of a prompt that the node has probably not cached, or of an answer; < 0: the node has
--- refused the prompt
function CacheClock:add(peer, count)
    self.dict:incr(node_keys.of(COMPUTED, peer), count, nil, math.floor(self.now() * BEGINS_AT))
end

--- The clock of a node.
---@param peer string the node's address
---@return integer tokens 0: it has not begun
function CacheClock:of(peer)
    return self.dict:get(node_keys.of(COMPUTED, peer)) or 0
end

return cache_clock
