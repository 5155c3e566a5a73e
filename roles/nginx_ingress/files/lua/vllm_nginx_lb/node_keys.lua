--- The keys of the shared dictionary that belong to one node each. Those of a node that has left the list are dropped:
-- otherwise each former node would use memory for ever.

local PREFIX = "node:"

local node_keys = {}

--- The key of a fact about a node.
---@param fact string its name, without a colon
---@param peer string the node's address
---@return string
function node_keys.of(fact, peer)
    return PREFIX .. fact .. ":" .. peer
end

--- Drop the facts about all nodes but these.
---@param dict SharedDict
---@param peers string[] the addresses of the nodes that stay
function node_keys.keep_only(dict, peers)
    local stays = {}
    for _, peer in ipairs(peers) do
        stays[peer] = true
    end
    for _, key in ipairs(dict:get_keys()) do
        local peer = key:match "^node:[^:]*:(.*)$"
        if peer and not stays[peer] then
            dict:delete(key)
        end
    end
end

return node_keys
