--- Outlier ejection: which nodes get no requests, for how long, and why. A node that fails is left out for a short
-- time, longer after each failure. Then a single request is its trial: while the trial lasts, the node gets no other
-- requests. verdict.lua, outlier.lua and error_share.lua know what a failure is. All workers share ejections. The
-- script decides weights and takes nodes out; ejection covers the seconds until the script has seen the failure, and
-- what the script cannot see.

local ejection_limit = require "vllm_nginx_lb.ejection_limit"
local ejection_records = require "vllm_nginx_lb.ejection_records"

local PASSED = ejection_records.PASSED

---@class Ejection
---@field records EjectionRecords
local Ejection = {}
Ejection.__index = Ejection

local ejection = {}

-- Why a node is ejected. The first four are kinds of a try (outcome.lua), and one such try is enough. outlier.lua and
-- error_share.lua find the next four in several tries, and stall.lua finds the last one in open requests.
local REASONS = {
    unreachable = "it cannot be reached",
    broken = "it broke a connection before an answer",
    timed_out = "it gave no answer in time",
    gateway = "it answered 502, 503 or 504",
    errors = "its answers are errors, and another node's are not",
    refusals = "it refuses requests, and another node does not",
    silent = "clients leave it without an answer, and another node answers",
    error_share = "more of its answers are errors than of the other nodes'",
    stalled = "it has begun answers and sends nothing",
}

--- The names of all causes, sorted.
ejection.CAUSES = {}
for cause in pairs(REASONS) do
    ejection.CAUSES[#ejection.CAUSES + 1] = cause
end
table.sort(ejection.CAUSES)

-- After these causes, one good answer does not show that the node is well. So its failures are not forgotten yet, and
-- the next ejection is longer. Each trial is a client's request that probably fails. So these ejections become up to
-- LONGER times as long as the others. Otherwise, where requests are few, each one would be a trial.
local MAY_RELAPSE, LONGER = { errors = true, refusals = true, error_share = true }, 12

--- Keep ejections in a dictionary.
---@param dict SharedDict
---@param settings table seconds: `first` ejection time (0: no node is ever ejected), `longest` ejection time, twelve
--- times that where answers are bad, `memory`, how long after its ejection a failure is forgotten, and `probe`, how
--- long one trial may take until the next one; and `most_percent` of a pool's nodes that may be out
---@param now fun(): number seconds of clock.lua
---@param counts NodeCounts
---@param log fun(text: string)
---@return Ejection
function ejection.new(dict, settings, now, counts, log)
    local records = ejection_records.new(dict, now)
    return setmetatable({ records = records, settings = settings, now = now, counts = counts, log = log }, Ejection)
end

--- Use another list of nodes.
---@param peers string[] addresses
function Ejection:use_nodes(peers)
    self.records:use_nodes(peers)
end

--- The nodes that get no requests now. While no node has failed, this reads one key of the dictionary.
---@return table<string, boolean> is_out true by address; valid until the next call
function Ejection:out()
    return self.records:out()
end

--- The record of a node that has failed and not passed its trial, as of now.
function Ejection:open_record(peer)
    self.records:out()
    local record = self.records.known[peer] and self.records:read(peer)
    return record and record.trial ~= PASSED and record or nil
end

--- Eject a node that failed. Further failures while it is ejected count as the same one.
---@param peer string its address
---@param cause string of ejection.CAUSES
---@param pool table its `nodes`
---@return boolean done false: it is ejected already, or too many nodes of the pool are
function Ejection:failed(peer, cause, pool)
    local settings, now = self.settings, self.now()
    local record = self.records:read(peer)
    if settings.first <= 0 or record and now < record.ends then
        return false
    end
    if not ejection_limit.CERTAIN[cause] then
        self.records:out()
        if not ejection_limit.has_room(peer, pool.nodes, self.records.known, settings.most_percent, now) then
            return false
        end
    end
    local fails = record and record.fails + 1 or 1
    local longest = settings.longest * (MAY_RELAPSE[cause] and LONGER or 1)
    local seconds = math.min(longest, settings.first * 2 ^ (fails - 1))
    self.log(("%s gets no requests for %.3g s: %s"):format(peer, seconds, REASONS[cause]))
    self.records:write(peer, {
        fails = fails,
        since = now,
        ends = now + seconds,
        trial = 0,
        forgotten = now + seconds + settings.memory,
        cause = cause,
    })
    self.counts:ejected(peer, cause)
    return true
end

--- Take a node's last ejection back. A trial of it is still to come if it had failed before, too.
---@param peer string its address
---@param ejected_at number when it was ejected
function Ejection:take_back(peer, ejected_at)
    local record = self.records:read(peer)
    if not record or math.abs(record.since - ejected_at) > 1e-5 then
        return -- it has failed again
    end
    self.log(peer .. " gets requests again: the request that ejected it failed elsewhere too, or its client has left")
    record.fails, record.ends, record.trial = record.fails - 1, 0, 0
    self.records:write(peer, record.fails > 0 and record or nil)
end

--- Note a good answer of a node: its trial has ended well.
---@param peer string its address
function Ejection:succeeded(peer)
    local record = self:open_record(peer)
    if record and MAY_RELAPSE[record.cause] then
        record.ends, record.trial = 0, PASSED
        self.records:write(peer, record)
    elseif record then
        self.records:write(peer, nil)
    end
end

--- Note that a node was chosen. If it has been ejected, this request is its trial.
---@param peer string its address
---@return boolean is_trial
function Ejection:chosen(peer)
    local record, now = self:open_record(peer), self.now()
    local is_trial = record ~= nil and now >= record.ends and now >= record.trial
    if is_trial then
        record.trial = now + self.settings.probe
        self.records:write(peer, record)
    end
    return is_trial
end

--- Note that a node's trial has ended. If it has shown nothing, the next request is a trial.
---@param peer string the node's address
function Ejection:trial_ended(peer)
    local record = self:open_record(peer)
    if record and record.trial > 0 then
        record.trial = 0
        self.records:write(peer, record)
    end
end

--- When a node was ejected last.
---@param peer string its address
---@return number at seconds of clock.lua; 0 if that is forgotten
function Ejection:last_ejected(peer)
    local record = self.records:read(peer)
    return record and record.since or 0
end

--- Why a node was ejected, until an answer has shown that it is well.
---@param peer string its address
---@return string|nil cause of ejection.CAUSES; nil if it is not ejected
function Ejection:cause(peer)
    local record = self:open_record(peer)
    return record and record.cause
end

--- For how long a node is still ejected.
---@param peer string its address
---@return number seconds 0 if it is not
function Ejection:seconds_left(peer)
    local record = self:open_record(peer)
    return record and math.max(0, record.ends - self.now()) or 0
end

return ejection
