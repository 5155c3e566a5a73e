--- Leave out a node that fails, at once and for a short time, longer each time; then let one request try it.
--
-- Shared by all workers. The balancer's script still decides what a node is good for; this is for the seconds until it
-- has noticed.

local FAILS, OUT, PROBE, TROUBLE = "fails:", "out:", "probe:", "trouble"

local Backoff = {}
Backoff.__index = Backoff

local backoff = {}

--- Keep failures in a dictionary.
-- @param dict an nginx shared dictionary
-- @tparam table settings seconds: `first` (0: no node is ever left out), `longest`, `memory` (after which a failure is
-- forgotten, more than `longest`) and `probe` (how long one trial may take until the next is let through)
function backoff.new(dict, settings)
    return setmetatable({ dict = dict, settings = settings }, Backoff)
end

--- Count a failure of a node; what else fails while it is left out is the same failure.
function Backoff:failed(peer)
    local settings = self.settings
    if settings.first <= 0 or self.dict:get(OUT .. peer) then
        return
    end
    local fails = self.dict:incr(FAILS .. peer, 1, 0) or 1
    self.dict:expire(FAILS .. peer, settings.memory)
    self.dict:set(OUT .. peer, true, math.min(settings.longest, settings.first * 2 ^ (fails - 1)))
    self.dict:delete(PROBE .. peer)
    self.dict:set(TROUBLE, true, settings.memory)
end

--- Hear that a node has answered: its failures are forgotten.
function Backoff:succeeded(peer)
    if self.dict:get(TROUBLE) and self.dict:get(FAILS .. peer) then
        for _, kind in ipairs { FAILS, OUT, PROBE } do
            self.dict:delete(kind .. peer)
        end
    end
end

--- Whether any node has failed lately: if not, nothing else needs to be asked.
function Backoff:trouble()
    return self.dict:get(TROUBLE) == true
end

--- Whether a node may be taken.
function Backoff:usable(peer)
    return not (self.dict:get(OUT .. peer) or self.dict:get(PROBE .. peer))
end

--- Hear that a node is taken: if it has failed before, this request is the trial, and no other until it has ended.
function Backoff:taken(peer)
    if self.dict:get(FAILS .. peer) then
        self.dict:add(PROBE .. peer, true, self.settings.probe)
    end
end

--- Seconds for which a node is still left out, 0 if it is not.
function Backoff:seconds_left(peer)
    return math.max(0, self.dict:ttl(OUT .. peer) or 0)
end

return backoff
