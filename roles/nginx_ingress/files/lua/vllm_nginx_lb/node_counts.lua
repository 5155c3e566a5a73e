--- Two facts about each node, shared by all workers: how often it was chosen, and when it last sent the first byte of
-- an answer.

local CHOSEN, FIRST_BYTE = "picks:", "heard:" -- keys of the dictionary, by the node's address

---@class NodeCounts
local NodeCounts = {}
NodeCounts.__index = NodeCounts

local node_counts = {}

--- Keep these facts in a dictionary.
---@param dict SharedDict
---@param first_byte_seconds number for how long a first byte is remembered: `stall_seconds`
---@return NodeCounts
function node_counts.new(dict, first_byte_seconds)
    return setmetatable({ dict = dict, first_byte_seconds = first_byte_seconds }, NodeCounts)
end

--- Count a choice of a node.
---@param peer string its address
function NodeCounts:chosen(peer)
    self.dict:incr(CHOSEN .. peer, 1)
end

--- How often a node was chosen, tries included.
---@param peer string its address
---@return integer
function NodeCounts:times_chosen(peer)
    return self.dict:get(CHOSEN .. peer) or 0
end

--- Note that a node has sent the first byte of an answer.
---@param peer string its address
---@param now number Unix seconds
function NodeCounts:sent_first_byte(peer, now)
    self.dict:set(FIRST_BYTE .. peer, now, self.first_byte_seconds)
end

--- When a node last sent the first byte of an answer.
---@param peer string its address
---@return number at Unix seconds; 0 if none is remembered
function NodeCounts:last_first_byte(peer)
    return self.dict:get(FIRST_BYTE .. peer) or 0
end

--- Drop the facts about nodes that have left the list: otherwise each former node would use memory for ever.
---@param before string[] addresses
---@param after string[] addresses
function NodeCounts:forget(before, after)
    local stays = {}
    for _, peer in ipairs(after) do
        stays[peer] = true
    end
    for _, peer in ipairs(before) do
        if not stays[peer] then
            self.dict:delete(CHOSEN .. peer)
            self.dict:delete(FIRST_BYTE .. peer)
        end
    end
end

return node_counts
