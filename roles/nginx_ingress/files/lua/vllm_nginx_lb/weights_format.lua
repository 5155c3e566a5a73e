--- The format of weights.json: the pools, their nodes and weights, as vllm-nginx-lb publishes them. Pure.
-- A file is accepted as a whole or not at all: requests never follow half of a file.

local weights_format = { VERSION = 1 }

local MAX_WEIGHT, MAX_PORT, MAX_CONNS = 100, 65535, 65535

local function is_list(value)
    return type(value) == "table" and (#value > 0 or next(value) == nil)
end

local function is_integer(value, low, high)
    return type(value) == "number" and value == math.floor(value) and value >= low and value <= high
end

local function is_text(value, pattern, longest)
    return type(value) == "string" and #value <= longest and value:match(pattern) ~= nil
end

--- Whether a text can be an IP address. nginx refuses a wrong one when a request is sent there.
local function is_ip(value)
    if type(value) == "string" and value:find(":", 1, true) then
        return is_text(value, "^[%x:.]+$", 45) and not value:find ":::"
    end
    local parts = is_text(value, "^%d+%.%d+%.%d+%.%d+$", 15) and { value:match "(%d+)%.(%d+)%.(%d+)%.(%d+)" } or { 256 }
    for _, part in ipairs(parts) do
        if tonumber(part) > 255 then
            return false
        end
    end
    return true
end

--- What is wrong with a node, or nil.
local function node_problem(node)
    if type(node) ~= "table" then
        return "is not an object"
    elseif not is_text(node.name, "^[%w._-]+$", 63) then
        return "name: expected 1 to 63 of A-Z a-z 0-9 . _ -"
    elseif not is_ip(node.address) then
        return "address: expected an IP address"
    elseif not is_integer(node.port, 1, MAX_PORT) then
        return "port: expected 1 to 65535"
    elseif not is_integer(node.weight, 0, MAX_WEIGHT) then
        return "weight: expected 0 to 100"
    elseif node.max_conns ~= nil and not is_integer(node.max_conns, 0, MAX_CONNS) then
        return "max_conns: expected 0 to 65535"
    end
    return nil
end

--- A node's address as nginx has it: host:port, or [host]:port for IPv6.
local function peer_of(node)
    local host = node.address:find(":", 1, true) and "[" .. node.address .. "]" or node.address
    return host .. ":" .. node.port
end

--- Read one node of a pool.
---@param node any
---@param found Weights read so far; a new address gets the next slot
---@param slots table the slot of each address read so far
---@param serving table the addresses of the pool, read so far, that have a weight
---@return table|nil node
---@return string|nil problem
local function read_node(node, found, slots, serving)
    local problem = node_problem(node)
    if problem then
        return nil, problem
    end
    local peer = peer_of(node)
    if node.weight > 0 then
        if serving[peer] then
            return nil, peer .. " serves twice"
        end
        serving[peer] = true
    end
    if not slots[peer] then
        slots[peer] = #found.peers
        found.peers[#found.peers + 1] = peer
    end
    return {
        name = node.name,
        host = peer:match "^(.*):%d+$",
        port = node.port,
        peer = peer,
        weight = node.weight,
        max_conns = node.max_conns or 0,
        slot = slots[peer],
    }
end

--- Add the models of a pool.
---@return string|nil problem
local function read_models(pool, found)
    if pool.models ~= nil and not is_list(pool.models) then
        return "models: expected a list"
    end
    for _, model in ipairs(pool.models or {}) do
        if not is_text(model, "^%C+$", 256) or found.models[model] then
            return "models: expected names of models, each in one pool"
        end
        found.models[model] = pool.name
    end
    return nil
end

--- Add a pool.
---@return string|nil problem
local function read_pool(pool, found, slots)
    if type(pool) ~= "table" or not is_text(pool.name, "^[%w._-]+$", 63) or found.pools[pool.name] then
        return "name: expected 1 to 63 of A-Z a-z 0-9 . _ -, once"
    elseif not is_list(pool.nodes) then
        return "nodes: expected a list"
    end
    local problem = read_models(pool, found)
    if problem then
        return problem
    end
    local nodes, serving = {}, {}
    for i, node in ipairs(pool.nodes) do
        nodes[i], problem = read_node(node, found, slots, serving)
        if problem then
            return ("nodes[%d] %s"):format(i - 1, problem)
        end
    end
    found.pools[pool.name] = { name = pool.name, nodes = nodes }
    return nil
end

---@class Weights
---@field generation string of the file
---@field pools table<string, table> by name, each with its `name` and its `nodes`: `name`, `host` and `port` as nginx
--- takes them, `peer` (both together, by which a node is counted and tried), `weight`, 0 to 100, `max_conns`, 0 for no
--- limit, and `slot`, its place in what is counted, from 0; two names of one address have one slot
---@field peers string[] of all nodes, by slot
---@field models table<string, string> the pool of each model

--- Read the file's content.
---@param content any its JSON, decoded
---@return Weights|nil
---@return string|nil problem the place of the fault, and what is expected there
function weights_format.read(content)
    if type(content) ~= "table" or content.version ~= weights_format.VERSION then
        return nil, "version: expected " .. weights_format.VERSION
    elseif not is_text(content.generation, "^[0-9a-z]+$", 64) then
        return nil, "generation: expected letters and digits"
    elseif not is_list(content.pools) or #content.pools == 0 then
        return nil, "pools: expected a list with at least one"
    end
    local found = { generation = content.generation, pools = {}, peers = {}, models = {} }
    local slots = {}
    for i, pool in ipairs(content.pools) do
        local problem = read_pool(pool, found, slots)
        if problem then
            return nil, ("pools[%d].%s"):format(i - 1, problem)
        end
    end
    return found
end

return weights_format
