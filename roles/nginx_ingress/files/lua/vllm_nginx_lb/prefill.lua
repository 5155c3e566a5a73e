--- How long a node takes until the first output of a request, by the prompt bytes that were pending there. Learned from
-- answers that are streamed: only these show when a prompt is computed. All workers share what they learn.
--
-- The time of a node is a line over its pending bytes: a constant part, which also holds the waiting for what is not
-- pending, and a part for each byte. The line is fitted to the latest samples of the node (least squares). A few
-- samples, or samples of one size, tell nothing about the part for each byte; then it is that of the default speed.

local ffi = require "ffi"
local node_keys = require "vllm_nginx_lb.node_keys"

local SUMS = "prefill" -- of node_keys
local KEPT = 1 - 1 / 96 -- what each sample leaves of the weight of those before it
local LONGEST = 60 -- s, of a sample and of an answer
-- The default speed counts as samples whose sizes deviate by this much, in bytes squared.
local TRUST_IN_DEFAULT = 4 * 8192 ^ 2
local FASTEST, SLOWEST = 64, 1 / 16 -- times the default speed
local COUNT = 5 -- sums: of samples, bytes, seconds, bytes², bytes * seconds
local SIZE = COUNT * ffi.sizeof "double"

local sums = ffi.new("double[?]", COUNT)

---@class Prefill
local Prefill = {}
Prefill.__index = Prefill

local prefill = {}

--- Keep what is learned in a dictionary.
---@param dict SharedDict
---@param bytes_per_second number the default speed, > 0
---@return Prefill
function prefill.new(dict, bytes_per_second)
    return setmetatable({ dict = dict, bytes_per_second = bytes_per_second }, Prefill)
end

--- Read the sums of a node; all zero if there are none.
local function read(dict, peer)
    local text = dict:get(node_keys.of(SUMS, peer))
    if type(text) == "string" and #text == SIZE then
        ffi.copy(sums, text, SIZE)
    else
        ffi.fill(sums, SIZE)
    end
end

--- Learn from a request whose first output has come. Two workers that learn at once may lose a sample.
---@param peer string address of the node
---@param bytes number that were pending at the node when the request was sent, its own included
---@param seconds number from then until the first output
function Prefill:learn(peer, bytes, seconds)
    seconds = math.max(0, math.min(LONGEST, seconds))
    read(self.dict, peer)
    local sample = { 1, bytes, seconds, bytes * bytes, bytes * seconds }
    for i = 1, COUNT do
        sums[i - 1] = KEPT * sums[i - 1] + sample[i]
    end
    self.dict:set(node_keys.of(SUMS, peer), ffi.string(sums, SIZE))
end

--- The line of a node.
---@param peer string its address
---@return number seconds for no byte, >= 0
---@return number seconds_per_byte
function Prefill:line(peer)
    local default = 1 / self.bytes_per_second
    read(self.dict, peer)
    local n = sums[0]
    if n == 0 then
        return 0, default
    end
    local bytes, seconds = sums[1] / n, sums[2] / n
    local spread = math.max(0, sums[3] - n * bytes * bytes)
    local together = sums[4] - n * bytes * seconds
    local slope = (together + TRUST_IN_DEFAULT * default) / (spread + TRUST_IN_DEFAULT)
    if slope * bytes > seconds then -- the constant part cannot be below 0
        slope = seconds / bytes
    end
    slope = math.max(default / FASTEST, math.min(default / SLOWEST, slope))
    return math.max(0, seconds - slope * bytes), slope
end

--- How fast a node computes prompts.
---@param peer string its address
---@return number|nil bytes_per_second nil before there is a sample
function Prefill:speed(peer)
    local _, seconds_per_byte = self:line(peer)
    return sums[0] > 0 and 1 / seconds_per_byte or nil
end

--- How long a request will probably take until its first output.
---@param peer string address of the node
---@param bytes number pending at the node, the request's own included
---@return number seconds at most a minute
function Prefill:seconds(peer, bytes)
    local constant, slope = self:line(peer)
    return math.min(LONGEST, constant + slope * bytes)
end

return prefill
