--- Work of requests that a node has answered with an error. It stays counted there for as long as a good answer would
-- take, at most 10 s: the prompt until the first output would come, the open stream until the end would. So a node that
-- answers fast with errors does not draw the next requests. A node that refuses a request has not begun its prompt, so
-- the prompt counts no longer. Otherwise clients with long wrong requests would keep nodes from their share.
-- Only this worker's requests are known here; in_flight.lua shares what they count.

-- Released in steps, so that there are few entries however many requests fail.
local STEP_SECONDS = 0.5
-- The longest that work is held, and how long while no good answer is known.
local LONGEST_SECONDS, UNKNOWN_SECONDS = 10, 1
-- How much a good answer changes the mean time of good answers (EWMA).
local SHARE_OF_NEWEST = 0.1

---@class HeldWork
local HeldWork = {}
HeldWork.__index = HeldWork

local held_work = {}

---@param in_flight InFlight
---@param prefill Prefill
---@param stream_bytes number what an open stream counts as, in bytes of prompt
---@param now fun(): number seconds of clock.lua
---@return HeldWork
function held_work.new(in_flight, prefill, stream_bytes, now)
    return setmetatable({
        in_flight = in_flight,
        prefill = prefill,
        stream_bytes = stream_bytes,
        now = now,
        mean_seconds = {}, -- of the good answers of a pool, by its name
        steps = {}, -- by the number of the step that releases them: bytes by address
        has_ended = false, -- true: nothing will call `release` again
    }, HeldWork)
end

--- Learn from a good answer how long they take.
---@param pool string its name
---@param seconds number from the choice of the node to the end of the answer
function HeldWork:learn(pool, seconds)
    local mean = self.mean_seconds[pool]
    self.mean_seconds[pool] = mean and mean + SHARE_OF_NEWEST * (seconds - mean) or seconds
end

--- Count bytes at a node until a time.
function HeldWork:hold_until(at, peer, bytes)
    local step = math.ceil(at / STEP_SECONDS)
    if self.has_ended or step * STEP_SECONDS <= self.now() then
        return -- a good answer would not have come sooner
    end
    bytes = math.ceil(bytes) -- whole numbers, so that the sum returns to exactly zero
    self.steps[step] = self.steps[step] or {}
    self.steps[step][peer] = (self.steps[step][peer] or 0) + bytes
    self.in_flight:add(peer, bytes, 0)
end

--- Hold the work of a request that its node has answered with an error.
---@param it Request at its node
---@param has_begun boolean false: the node has refused the request
function HeldWork:hold(it, has_begun)
    local answer_seconds = math.min(LONGEST_SECONDS, self.mean_seconds[it.pool.name or ""] or UNKNOWN_SECONDS)
    if has_begun then
        local prompt_seconds = math.min(answer_seconds, self.prefill:seconds(it.peer, it.ahead))
        self:hold_until(it.sent_at + prompt_seconds, it.peer, it.cost)
    end
    self:hold_until(it.sent_at + answer_seconds, it.peer, self.stream_bytes)
end

--- Release what was held for long enough.
---@param has_ended boolean|nil true: all of it, now and from now on, because this worker ends
function HeldWork:release(has_ended)
    local now = self.now()
    self.has_ended = self.has_ended or has_ended == true
    for step, bytes_of in pairs(self.steps) do
        if self.has_ended or step * STEP_SECONDS <= now then
            for peer, bytes in pairs(bytes_of) do
                self.in_flight:add(peer, -bytes, 0)
            end
            self.steps[step] = nil
        end
    end
end

return held_work
