--- Nodes that have said lately that they are full. For a second, other nodes are asked first, so a request does not use
-- up its tries at nodes without room. A worker knows what its own requests were told. Pure.

local SECONDS = 1

---@class FullNodes
local FullNodes = {}
FullNodes.__index = FullNodes

local full_nodes = {}

--- No node is full.
---@param now fun(): number seconds of clock.lua
---@return FullNodes
function full_nodes.new(now)
    return setmetatable({ now = now, ends = {} }, FullNodes) -- by address: until when others are asked first
end

--- Note that a node has said that it is full.
---@param peer string its address
function FullNodes:note(peer)
    self.ends[peer] = self.now() + SECONDS
end

--- The nodes that others are asked before. While there is none, this reads no clock.
---@return table<string, number> is_full by address; valid until the next call
function FullNodes:lately()
    if next(self.ends) then
        local now = self.now()
        for peer, ends in pairs(self.ends) do
            if now >= ends then
                self.ends[peer] = nil
            end
        end
    end
    return self.ends
end

return full_nodes
