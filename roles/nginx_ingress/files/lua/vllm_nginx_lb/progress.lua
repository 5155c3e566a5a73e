--- Progress: what a node has probably computed of a long prompt is pending no longer. Pure.
--
-- A node computes prompts in the order in which they came. So of this worker's long prompts at a node only the oldest
-- one makes progress, from the time at which the work ahead of it is probably done (prefill.lua). It counts in parts,
-- and the last part is pending until the first output. So a node that hangs keeps all of its pending work but that of
-- one prompt of each worker.

local PARTS = 8 -- of a prompt
-- A prompt that is shorter, or takes less time, is pending as a whole.
local SHORTEST_BYTES, SHORTEST_SECONDS = 8192, 0.4
local STEP = 0.05 -- s, of a slot of time
local LONGEST = 60 -- s, until a prompt begins, and of a part
local MOST_SLOTS = LONGEST / STEP + 1 -- later ones are empty

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

--- No prompt is pending.
---@param in_flight InFlight
---@param prefill Prefill
---@return Progress
function progress.new(in_flight, prefill)
    return setmetatable({
        in_flight = in_flight,
        prefill = prefill,
        queues = {}, -- by address: long prompts in the order of sending, from `first` to `last`
        slots = {}, -- by the number of a slot of time: the prompts to look at
    }, Progress)
end

--- Whether a prompt is still pending at its node. A request that was sent again has another prompt here.
local function is_pending(prompt)
    return prompt.it.long_prompt == prompt and prompt.it.pending > 0
end

--- Look at a prompt in the first slot after a time.
function Progress:look_at(prompt, at)
    local slot = math.max(math.ceil(at / STEP), self.next_slot)
    self.slots[slot] = self.slots[slot] or {}
    table.insert(self.slots[slot], prompt)
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
    local prompt = { it = it, peer = it.peer, bytes = it.pending, part_seconds = math.min(LONGEST, seconds / PARTS) }
    it.long_prompt = prompt
    local queue = self.queues[it.peer] or { first = 1, last = 0 }
    self.queues[it.peer] = queue
    queue.last = queue.last + 1
    queue[queue.last] = prompt
    self.next_slot = self.next_slot or math.floor(now / STEP)
    self:look_at(prompt, now + math.min(LONGEST, constant + seconds_per_byte * (it.ahead - it.pending)))
end

--- The oldest prompt that is pending at a node; nil if there is none.
function Progress:oldest(peer)
    local queue = self.queues[peer]
    while queue and queue.first <= queue.last do
        local prompt = queue[queue.first]
        if is_pending(prompt) then
            return prompt
        end
        queue[queue.first] = nil
        queue.first = queue.first + 1
    end
    self.queues[peer] = nil
    return nil
end

--- Count as computed what a node has probably computed of its oldest prompt.
---@return boolean is_open true: more of it will count as computed later
function Progress:go_on(prompt, now)
    prompt.began_at = prompt.began_at or now
    local parts = math.min(PARTS - 1, math.floor((now - prompt.began_at) / prompt.part_seconds))
    local left = math.ceil(prompt.bytes * (PARTS - parts) / PARTS) -- whole numbers: sums return to exactly zero
    local it = prompt.it
    if left < it.pending then
        self.in_flight:add(it.peer, left - it.pending, 0)
        it.pending = left
    end
    return parts < PARTS - 1
end

--- Look at a prompt, and say when to look at it again.
function Progress:look(prompt, now)
    local is_oldest = self:oldest(prompt.peer) == prompt
    if is_pending(prompt) and (not is_oldest or self:go_on(prompt, now)) then
        self:look_at(prompt, now + prompt.part_seconds)
    end
end

--- Count as computed what nodes have probably computed by now.
---@param now number seconds of clock.lua
function Progress:see(now)
    local first, last = self.next_slot, math.floor(now / STEP)
    if not first or last < first then
        return
    end
    self.next_slot = last + 1
    for slot = first, math.min(last, first + MOST_SLOTS) do
        local due = self.slots[slot]
        self.slots[slot] = nil
        for i = 1, due and #due or 0 do
            self:look(due[i], now)
        end
    end
end

return progress
