--- The nodes and their weights, as the balancer's script publishes them in weights.json. Pure.
--
-- The file is taken as a whole or not at all, so that half a truth never routes a request.

local membership = {}

local VERSION, MAX_WEIGHT, MAX_PORT, MAX_CONNS = 1, 100, 65535, 65535

local function is_list(value)
    return type(value) == "table" and (#value > 0 or next(value) == nil)
end

local function is_integer(value, low, high)
    return type(value) == "number" and value == math.floor(value) and value >= low and value <= high
end

local function is_text(value, pattern, longest)
    return type(value) == "string" and #value <= longest and value:match(pattern) ~= nil
end

--- Whether a text can be an address; nginx knows what it is in the end.
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

--- Check one node.
-- @treturn ?string what is wrong, or nil
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

--- host:port of a node, by which it is counted and tried.
local function peer_of(node)
    local host = node.address:find(":", 1, true) and "[" .. node.address .. "]" or node.address
    return host .. ":" .. node.port
end

--- Read the file's content.
-- @tparam ?table content what its JSON says
-- @treturn ?table `generation`, `pools` by name, each with `nodes`, `peers`, the list of all by slot, and `models`, the
-- pool of each model by its name
-- @treturn ?string what is wrong with it
function membership.read(content)
    if type(content) ~= "table" or content.version ~= VERSION then
        return nil, "version: expected " .. VERSION
    elseif not is_text(content.generation, "^[0-9a-z]+$", 64) then
        return nil, "generation: expected letters and digits"
    elseif not is_list(content.pools) or #content.pools == 0 then
        return nil, "pools: expected a list with at least one"
    end
    local found = { generation = content.generation, pools = {}, peers = {}, models = {} }
    local slots = {}
    for i, pool in ipairs(content.pools) do
        local where = "pools[" .. i - 1 .. "]"
        if type(pool) ~= "table" or not is_text(pool.name, "^[%w._-]+$", 63) or found.pools[pool.name] then
            return nil, where .. ".name: expected 1 to 63 of A-Z a-z 0-9 . _ -, once"
        elseif not is_list(pool.nodes) then
            return nil, where .. ".nodes: expected a list"
        end
        if pool.models ~= nil and not is_list(pool.models) then
            return nil, where .. ".models: expected a list"
        end
        for _, model in ipairs(pool.models or {}) do
            if not is_text(model, "^%C+$", 256) or found.models[model] then
                return nil, where .. ".models: expected names of models, each in one pool"
            end
            found.models[model] = pool.name
        end
        local nodes, there = {}, {}
        for k, node in ipairs(pool.nodes) do
            local problem = node_problem(node)
            if problem then
                return nil, ("%s.nodes[%d] %s"):format(where, k - 1, problem)
            end
            local peer = peer_of(node)
            if there[peer] and node.weight > 0 then
                return nil, ("%s.nodes[%d] %s serves twice"):format(where, k - 1, peer)
            end
            if not slots[peer] then
                slots[peer] = #found.peers
                found.peers[#found.peers + 1] = peer
            end
            nodes[k] = {
                name = node.name,
                host = peer:match("^(.*):%d+$"),
                port = node.port,
                peer = peer,
                weight = node.weight,
                max_conns = node.max_conns or 0,
                slot = slots[peer],
            }
            if node.weight > 0 then
                there[peer] = true
            end
        end
        found.pools[pool.name] = { name = pool.name, nodes = nodes }
    end
    return found
end

--- What weights.json would say, from the upstream file of nginx's own balancer, as the script writes it. With that a
-- host serves that has changed from the one to the other, until the script has published.
-- @tparam string text of the file
-- @treturn table as JSON would have it
function membership.of_upstream_file(text)
    local pools = {}
    for name, block in text:gmatch "upstream ([%w_]+) (%b{})" do
        local nodes = {}
        for address, port, rest in block:gmatch "server (%S+):(%d+) ([^\n]*)" do
            nodes[#nodes + 1] = {
                name = rest:match "# (%S+)" or "node-" .. #nodes,
                address = address:gsub("[%[%]]", ""),
                port = tonumber(port),
                weight = rest:match "^down" and 0 or tonumber(rest:match "weight=(%d+)") or 1,
                max_conns = tonumber(rest:match "max_conns=(%d+)"),
            }
        end
        pools[#pools + 1] = { name = name, nodes = nodes }
    end
    return { version = VERSION, generation = text:match 'default "([0-9a-z]+)"' or "seed", pools = pools }
end

return membership
