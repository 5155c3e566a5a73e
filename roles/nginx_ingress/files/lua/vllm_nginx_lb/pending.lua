--- Pending work: the prompts of this worker's requests that their nodes have not computed yet.
--
-- A prompt is pending until the first output of its answer. Of a long one, what is probably computed counts no longer
-- (progress.lua). An answer that is not streamed shows nothing until it is complete, maybe minutes later. So its prompt
-- is pending for as long as prefill.lua predicted when it was sent. The headers show whether an answer is streamed. If
-- it is, only its output ends the pending work. So a node that hangs keeps the pending work of its streams.
-- Requests are kept by the slot of time in which their prompts probably end. So `finish_due` looks only at these.

local time_slots = require "vllm_nginx_lb.time_slots"

---@class Pending
local Pending = {}
Pending.__index = Pending

local pending = {}

--- Nothing is pending.
---@param in_flight InFlight
---@param progress Progress
---@return Pending
function pending.new(in_flight, progress)
    return setmetatable({
        in_flight = in_flight,
        progress = progress,
        ends = time_slots.new(), -- of requests: when their prompts are probably computed
        has_ended = false, -- true: the worker shuts down, and its timer calls `finish_due` no more
    }, Pending)
end

--- Expect a prompt to be computed. Its bytes are counted already.
---@param it Request with `peer`; `pending`, its bytes that are counted, and `predicted`
---@param now number seconds of clock.lua
function Pending:expect(it, now)
    if it.pending == 0 or self.has_ended then
        self:finish(it)
        return
    end
    it.due_slot = self.ends:put(it, now + it.predicted, now)
    self.progress:follow(it, now)
end

--- Count a prompt as computed, if it is pending.
---@param it Request
function Pending:finish(it)
    if it.pending and it.pending > 0 then
        self.in_flight:add(it.peer, -it.pending, 0)
        it.pending = 0
    end
end

--- Count as computed what nodes have probably computed by now.
---@param now number seconds of clock.lua
function Pending:finish_due(now)
    self.progress:see(now)
    for _, it in ipairs(self.ends:due(now)) do
        if self.ends:is_over(it.due_slot) and not it.output then -- not sent again since, and not a stream
            self:finish(it)
        end
    end
end

--- Count all prompts as computed, except those of streams, and all later prompts at once. The worker shuts down, and
-- its timer calls `finish_due` no more.
function Pending:finish_all()
    self.has_ended = true
    for slot, requests in pairs(self.ends.slots) do
        for _, it in ipairs(requests) do
            if not it.output then
                self:finish(it)
            end
        end
        self.ends.slots[slot] = nil
    end
end

return pending
