--- What is known of the nodes' KV caches: readings.json, which vllm-nginx-lb writes at each tick.
-- A file that is absent, faulty, or older than some intervals says nothing. Then no node is full as far as is known.
-- The file has the time of its tick, so a worker that starts knows how old it is. From then on, a clock that nobody
-- sets counts. A file whose time is some seconds ahead counts as so many seconds old: somebody has set the wall clock,
-- and the next tick will write a new file.
-- How many tokens a node's cache holds does not change, so that is kept when a later file does not have it.

local cjson = require "cjson.safe"
local files = require "vllm_nginx_lb.files"
local kv_room = require "vllm_nginx_lb.kv_room"
local readings_format = require "vllm_nginx_lb.readings_format"

local MAX_BYTES = 2 ^ 20 -- of the file: some 10,000 nodes
local MOST_INTERVALS = 3 -- without a new file

---@class Readings
local Readings = {}
Readings.__index = Readings

local readings = {}

---@class ReadingsParts
---@field settings table `readings_file`, and `kv_share`: of a KV cache, that may be filled (kv_room.lua)
---@field open OpenPrompts
---@field now fun(): number seconds of clock.lua
---@field wall_now fun(): number Unix seconds
---@field log fun(text: string)

--- Start without readings; `refresh` reads the file.
---@param parts ReadingsParts
---@return Readings
function readings.new(parts)
    return setmetatable({ parts = parts, nodes = {}, sizes = {}, open_at = {}, ends = 0 }, Readings)
end

--- Take in new readings. They hold for some intervals, counted from their tick.
function Readings:take(found)
    self.nodes, self.open_at = found.nodes, {}
    local age = math.abs(self.parts.wall_now() - found.decided_at_seconds)
    self.ends = self.parts.now() + MOST_INTERVALS * found.interval_seconds - age
    for peer, node in pairs(found.nodes) do
        self.open_at[peer] = self.parts.open:at(peer)
        self.sizes[peer] = node.kv_tokens or self.sizes[peer]
    end
end

--- Read the file, and take it in if it has changed. A fault of the file is logged once.
function Readings:read()
    local text, problem, is_absent = files.read_others(self.parts.settings.readings_file, MAX_BYTES)
    if text == self.last_text and text then
        return
    end
    self.last_text = text
    local found
    if text then
        found, problem = cjson.decode(text)
        if found then
            found, problem = readings_format.read(found)
        end
    end
    if found then
        self:take(found)
    else
        self.ends = 0
        problem = not is_absent and problem or nil
        if problem and problem ~= self.last_problem then
            local path = self.parts.settings.readings_file
            self.parts.log(("%s: %s; no KV cache counts as full"):format(path, problem))
        end
    end
    self.last_problem = problem
end

--- Forget the sizes of nodes that have left the list.
---@param peers string[] the addresses of the nodes that stay
function Readings:keep_only(peers)
    local sizes = {}
    for _, peer in ipairs(peers) do
        sizes[peer] = self.sizes[peer]
    end
    self.sizes = sizes
end

--- Read the file if it has changed, and set what each node has: `kv_tokens`, `kv_usage` and `kv_left` (kv_room.lua).
---@param pools table by name, each with `nodes`
function Readings:refresh(pools)
    local parts = self.parts
    self:read()
    local is_new_enough = parts.now() <= self.ends
    for _, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            local reading = is_new_enough and self.nodes[node.peer]
            node.kv_tokens = self.sizes[node.peer]
            node.kv_usage = reading and reading.kv_usage or nil
            local more = node.kv_usage and parts.open:at(node.peer) - self.open_at[node.peer] or 0
            kv_room.set(node, more, parts.settings.kv_share)
        end
    end
end

return readings
