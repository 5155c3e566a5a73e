--- Progress: what a node has probably computed of a long prompt is pending no longer. Pure.
--
-- A node computes prompts in the order in which they came. So of this worker's long prompts at a node only the oldest
-- one makes progress, from the time at which the work ahead of it is probably done (prefill.lua). It counts in parts,
-- and the last part is pending until the first output. So of a node that hangs, each worker takes off at most seven
-- eighths of one prompt at a time.

local time_slots = require "vllm_nginx_lb.time_slots"

local PARTS = 8 -- of a prompt
-- A prompt that is shorter, or takes less time, is pending as a whole until its first output.
local SHORTEST_BYTES, SHORTEST_SECONDS = 8192, 0.4
local LONGEST = 60 -- s, until a prompt begins, and of a part

---@class Progress
local Progress = {}
Progress.__index = Progress

local progress = {}

---@class LongPrompt
---@field it Request
---@field peer string address of its node
---@field bytes number that are pending at first
---@field part_seconds number that the node takes for a part
---@field began_at number|nil when the node has probably begun it, seconds of clock.lua
---@field before LongPrompt|nil the next older one of its queue
---@field behind LongPrompt|nil the next younger one
---@field has_left boolean|nil true: it is in no queue

--- No prompt is pending.
---@param in_flight InFlight
---@param prefill Prefill
---@return Progress
function progress.new(in_flight, prefill)
    return setmetatable({
        in_flight = in_flight,
        prefill = prefill,
        queues = {}, -- by address: the oldest and the youngest long prompt, `first` and `last`
        looks = time_slots.new(), -- when to look at which prompt
    }, Progress)
end

--- Whether a prompt is still pending at its node. A request that was sent again has another prompt here.
local function is_pending(prompt)
    return prompt.it.long_prompt == prompt and prompt.it.pending > 0
end

--- Put a prompt at the end of the queue of its node.
function Progress:append(prompt)
    local queue = self.queues[prompt.peer]
    if queue then
        queue.last.behind, prompt.before = prompt, queue.last
        queue.last = prompt
    else
        self.queues[prompt.peer] = { first = prompt, last = prompt }
    end
end

--- Take a prompt out of its queue, if it is still there.
function Progress:remove(prompt)
    if prompt.has_left then
        return
    end
    prompt.has_left = true
    local queue, before, behind = self.queues[prompt.peer], prompt.before, prompt.behind
    if before then
        before.behind = behind
    else
        queue.first = behind
    end
    if behind then
        behind.before = before
    else
        queue.last = before
    end
    if not queue.first then
        self.queues[prompt.peer] = nil
    end
end

--- The oldest pending prompt of a queue that has one.
function Progress:oldest(peer)
    local prompt = self.queues[peer].first
    while not is_pending(prompt) do
        self:remove(prompt)
        prompt = prompt.behind
    end
    return prompt
end

--- Follow a prompt that has just been sent, if it is long. Its bytes are counted already.
---@param it Request with `peer`; `pending`, its bytes that are counted, and `ahead`, all bytes pending at its node
---@param now number seconds of clock.lua
function Progress:follow(it, now)
    it.long_prompt = nil
    if it.pending < SHORTEST_BYTES then
        return
    end
    local constant, seconds_per_byte = self.prefill:line(it.peer)
    local seconds = seconds_per_byte * it.pending
    if seconds < SHORTEST_SECONDS then
        return
    end
    local part_seconds = math.min(LONGEST, seconds / PARTS)
    it.long_prompt = { it = it, peer = it.peer, bytes = it.pending, part_seconds = part_seconds }
    self:append(it.long_prompt)
    local begins_in = math.min(LONGEST, constant + seconds_per_byte * (it.ahead - it.pending))
    self.looks:put(it.long_prompt, now + begins_in, now)
end

--- Count as computed what a node has probably computed of its oldest prompt.
function Progress:go_on(prompt, now)
    prompt.began_at = prompt.began_at or now
    local parts = math.min(PARTS - 1, math.floor((now - prompt.began_at) / prompt.part_seconds))
    local left = math.ceil(prompt.bytes * (PARTS - parts) / PARTS) -- whole numbers: sums return to exactly zero
    local it = prompt.it
    if left < it.pending then
        self.in_flight:add(it.peer, left - it.pending, 0)
        it.pending = left
    end
end

--- Look at a prompt, and say when to look at it again.
function Progress:look(prompt, now)
    if not is_pending(prompt) then
        self:remove(prompt)
        return
    end
    if self:oldest(prompt.peer) == prompt then
        self:go_on(prompt, now)
    end
    self.looks:put(prompt, now + prompt.part_seconds, now)
end

--- Count as computed what nodes have probably computed by now.
---@param now number seconds of clock.lua
function Progress:see(now)
    for _, prompt in ipairs(self.looks:due(now)) do
        self:look(prompt, now)
    end
end

return progress
