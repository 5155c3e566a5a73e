--- The weights that this worker uses: read again whenever vllm-nginx-lb has published new ones.
-- A faulty file is refused as a whole, and the last good weights stay. Shared memory keeps these weights for the
-- workers of the next reload.

local cjson = require "cjson.safe"
local files = require "vllm_nginx_lb.files"
local slow_start = require "vllm_nginx_lb.slow_start"
local weights_format = require "vllm_nginx_lb.weights_format"

local LAST_GOOD = "good" -- in the dictionary: the text of the last good file

---@class WeightsFile
---@field known Weights|nil the weights in use; nil: none yet
local WeightsFile = {}
WeightsFile.__index = WeightsFile

local weights_file = {}

---@class WeightsFileParts
---@field path string of weights.json
---@field upstream_path string of the upstream file of nginx's own balancer
---@field dict SharedDict
---@field slow_start_seconds number 0: no slow start
---@field now fun(): number seconds of clock.lua
---@field log fun(text: string)
---@field on_change fun(found: Weights, former: Weights|nil) called before new weights are in use

--- Start without weights; `refresh` reads the file.
---@param parts WeightsFileParts
---@return WeightsFile
function weights_file.new(parts)
    return setmetatable({ parts = parts, known = nil, last_seen = nil }, WeightsFile)
end

--- The content of weights.json, read back from the upstream file that the script writes for nginx's own balancer.
--
-- This is the only place that reads nginx's configuration: a host that switches from the balancer `upstream` to `work`
-- serves with this until the script has published weights.json.
---@param text string of the file
---@return table content as the JSON of weights.json has it
function weights_file.of_upstream_file(text)
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
    local generation = text:match 'default "([0-9a-z]+)"' or "seed"
    return { version = weights_format.VERSION, generation = generation, pools = pools }
end

--- The weights in a text, or nil and what is wrong.
local function parse(text)
    local content, problem = cjson.decode(text)
    if not content then
        return nil, problem
    end
    return weights_format.read(content)
end

--- The weights of a new worker when the file is faulty: the last good ones, or those of nginx's own balancer.
function WeightsFile:instead()
    local text = self.parts.dict:get(LAST_GOOD)
    if text then
        return parse(text)
    end
    text = files.read(self.parts.upstream_path)
    return text and weights_format.read(weights_file.of_upstream_file(text))
end

--- Use new weights.
function WeightsFile:take(found)
    local parts, former = self.parts, self.known
    slow_start.begin(found.pools, former and former.pools, parts.now(), parts.slow_start_seconds)
    parts.on_change(found, former)
    self.known = found
end

--- Read the file, and use it if it has changed. A fault of the file is logged once.
function WeightsFile:refresh()
    local parts = self.parts
    local text, unreadable = files.read(parts.path)
    local seen = text or unreadable
    if seen == self.last_seen then
        return
    end
    self.last_seen = seen
    local found, problem
    if text then
        found, problem = parse(text)
    end
    if found then
        parts.dict:set(LAST_GOOD, text)
    else
        found = not self.known and self:instead()
        if text or not found then -- a missing file is no fault if other weights were found
            local what = (self.known or found) and "the last good weights stay" or "no node is known yet"
            parts.log(("%s: %s; %s"):format(parts.path, problem or unreadable, what))
        end
    end
    if found then
        self:take(found)
    end
end

--- Raise the weights of the nodes in slow start.
function WeightsFile:go_on()
    if self.known then
        slow_start.go_on(self.known.pools, self.parts.now(), self.parts.slow_start_seconds)
    end
end

--- All pools by name; none before there are weights.
---@return table<string, table>
function WeightsFile:pools()
    return self.known and self.known.pools or {}
end

--- The addresses of all nodes; none before there are weights.
---@return string[]
function WeightsFile:peers()
    return self.known and self.known.peers or {}
end

--- The pool of each model by its name; empty where no pool names its models.
---@return table<string, string>
function WeightsFile:models()
    return self.known and self.known.models or {}
end

--- The generation of the weights in use.
---@return string
function WeightsFile:generation()
    return self.known and self.known.generation or "seed"
end

return weights_file
