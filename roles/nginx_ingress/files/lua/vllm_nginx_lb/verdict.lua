--- What follows from an answer that has begun, and from a try that has ended: it is counted, its node may be ejected,
-- and its work may be held.

local ending = require "vllm_nginx_lb.ending"
local outcome = require "vllm_nginx_lb.outcome"

-- The kinds of a try (outcome.lua) that eject the node at once; "broken" and "timed_out" do, too, under conditions: see
-- below.
local FAILURES = { unreachable = true, gateway = true }
-- The kinds after which a node would be idle too soon, and attract the next requests.
local HELD = { broken = true, gateway = true, fault = true, full = true, refusal = true }

---@class Verdicts
local Verdicts = {}
Verdicts.__index = Verdicts

local verdict = {}

---@class VerdictParts
---@field counts NodeCounts
---@field ejection Ejection
---@field outlier Outlier
---@field full FullNodes
---@field held HeldWork
---@field prefill Prefill
---@field now fun(): number seconds of clock.lua

---@param parts VerdictParts
---@return Verdicts
function verdict.new(parts)
    return setmetatable({ parts = parts }, Verdicts)
end

--- Note that a node has shown that it is well.
function Verdicts:shows_well(it)
    self.parts.ejection:succeeded(it.peer)
    self.parts.counts:note_output(it.peer, self.parts.now())
end

--- Note that a stream has begun with output.
---@param it Request at its node
function Verdicts:begun(it)
    local parts = self.parts
    local seconds = parts.now() - it.sent_at
    parts.counts:first_output(it.peer, it.predicted, seconds)
    parts.prefill:learn(it.peer, it.ahead, seconds)
    parts.outlier:good(it.peer)
    self:shows_well(it)
end

--- Note a good answer.
function Verdicts:good(it)
    local parts = self.parts
    if it.is_light then
        return
    elseif it.stage ~= "body" then
        parts.outlier:bad(it, "left", "left") -- the client has gone after the headers
        return
    elseif it.is_complete then
        parts.outlier:good(it.peer, true)
        if not it.output then -- the beginning of a stream has shown it
            self:shows_well(it)
        end
    end
    parts.held:learn(it.pool.name or "", parts.now() - it.sent_at)
end

--- Take back the ejection that a request has caused by breaking a node's connection.
function Verdicts:take_back(it)
    local first = it.broken
    if first and first.ejected_at then
        self.parts.ejection:take_back(first.peer, first.ejected_at)
        first.ejected_at = nil
    end
end

--- Note that a connection has broken. Where the same request breaks the connections of two nodes, it is probably its
-- own fault: neither is ejected for it.
function Verdicts:broken(it)
    local ejection, first = self.parts.ejection, it.broken
    if not first then
        local is_ejected = ejection:failed(it.peer, "broken", it.pool)
        it.broken = { peer = it.peer, ejected_at = is_ejected and ejection:last_ejected(it.peer) }
    elseif first.peer ~= it.peer then
        self:take_back(it)
    end
end

--- Note that no answer came in time. One long request is no failure of a node that answers others meanwhile.
function Verdicts:timed_out(it, label)
    local parts = self.parts
    if parts.counts:last_output(it.peer) > it.sent_at then
        parts.outlier:bad(it, "fault", label)
    else
        parts.ejection:failed(it.peer, "timed_out", it.pool)
    end
end

--- Note an answer that is not good, or a try without an answer.
function Verdicts:bad(it, kind, label)
    local parts = self.parts
    if HELD[kind] then
        parts.held:hold(it, kind ~= "refusal")
    end
    if kind == "left" then
        self:take_back(it) -- no other node has shown whether the request was the cause
    end
    if kind == "broken" then
        self:broken(it)
    elseif kind == "timed_out" then
        self:timed_out(it, label)
    elseif kind == "full" then
        parts.full:note(it.peer)
        parts.outlier:bad(it, kind, label)
    elseif FAILURES[kind] then
        parts.ejection:failed(it.peer, kind, it.pool)
    elseif not it.is_light then
        parts.outlier:bad(it, kind, label)
    end
end

--- Judge a try that has ended.
---@param it Request at its node
---@param try Try see outcome.lua
---@return string kind of the try
function Verdicts:judge(it, try)
    local kind = outcome.kind_of(try)
    local label = outcome.label_of(try, kind)
    local fault = kind == "good" and ending.fault(it, try.status)
    if fault then
        kind, label = "fault", fault
    elseif it.is_light and try.has_answer then
        label = outcome.LIGHT
    end
    self.parts.counts:answered(it.peer, label)
    if kind == "good" then
        self:good(it)
    else
        self:bad(it, kind, label)
    end
    if it.is_trial then
        self.parts.ejection:trial_ended(it.peer)
    end
    return kind
end

return verdict
