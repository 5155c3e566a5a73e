--- Nodes with a larger share of bad answers than the other nodes of their pool, over a sliding interval. Each worker
-- compares the counts of node_counts.lua now with those of an interval ago.

local outcome = require "vllm_nginx_lb.outcome"

-- Answers with these labels are bad. A refusal may be the request's own fault. So a refusal is bad only if no other
-- node of the pool has given the same status lately. Then it counts by how much larger its share is at this node than
-- at the others. 503 is not among the faults: it may say that the node is full.
local FAULTS = {}
for _, label in ipairs { "3xx", "500", "5xx", "502", "504", "broken", outcome.NO_OUTPUT, outcome.CUT_OFF } do
    FAULTS[label] = true
end
local REFUSALS = {}
for label in pairs(outcome.IS_BAD) do
    REFUSALS[label] = label:sub(1, 1) == "4"
end
local IS_LEFT_OUT = { left = true, [outcome.LIGHT] = true }
-- Of fewer answers, a share says little.
local LEAST_ANSWERS = 10

---@class ErrorShare
local ErrorShare = {}
ErrorShare.__index = ErrorShare

local error_share = {}

---@class ErrorShareParts
---@field settings table `outlier`: `interval_seconds`, and `error_ratio`, by how much a node's share of bad answers is
--- larger than the others' if it is ejected; 1: none is
---@field counts NodeCounts
---@field ejection Ejection
---@field now fun(): number seconds of clock.lua

---@param parts ErrorShareParts
---@return ErrorShare
function error_share.new(parts)
    return setmetatable({ parts = parts, older = nil, newer = nil, next_at = 0, bad = 0 }, ErrorShare) -- see `compare`
end

--- The answers of each node of a list by label, since nginx has started.
function ErrorShare:read(peers)
    local counts, labels, of = self.parts.counts, self.parts.counts:labels(), {}
    for _, peer in ipairs(peers) do
        local found = {}
        for _, label in ipairs(labels) do
            found[label] = counts:times_answered(peer, label)
        end
        of[peer] = found
    end
    return of
end

--- The answers of each node of a pool by label between two readings, and of all its nodes together.
local function between(nodes, before, after)
    local of, all = {}, { by_label = {}, answers = 0 }
    for _, node in ipairs(nodes) do
        local was, is = before[node.peer], after[node.peer]
        local one = { by_label = {}, answers = 0 }
        for label, times in pairs(was and is or {}) do
            local new = not IS_LEFT_OUT[label] and math.max(0, times - (was[label] or 0)) or 0
            one.by_label[label], one.answers = new, one.answers + new
            all.by_label[label] = (all.by_label[label] or 0) + new
        end
        all.answers = all.answers + one.answers
        of[node.peer] = one
    end
    return of, all
end

--- A function that tells whether a node alone has given answers of a label lately. It reads each label's facts once.
function ErrorShare:alone(nodes)
    local counts, since, givers_of = self.parts.counts, self.parts.now() - outcome.COMMON_SECONDS, {}
    return function(peer, label)
        local givers = givers_of[label]
        if not givers then
            givers = { count = 0 }
            for _, node in ipairs(nodes) do
                if counts:last_gave(node.peer, label) >= since then
                    givers.count, givers[node.peer] = givers.count + 1, true
                end
            end
            givers_of[label] = givers
        end
        return givers.count == (givers[peer] and 1 or 0)
    end
end

--- By how much a node's share of bad answers is larger than the others'.
local function excess(peer, one, all, is_alone)
    local others, faults, refusals = all.answers - one.answers, 0, 0
    if one.answers < LEAST_ANSWERS or others < LEAST_ANSWERS then
        return 0
    end
    for label, times in pairs(one.by_label) do
        local more = times / one.answers - (all.by_label[label] - times) / others
        if FAULTS[label] then
            faults = faults + more
        elseif REFUSALS[label] and more > 0 and is_alone(peer, label) then
            refusals = refusals + more
        end
    end
    return faults + refusals
end

--- Eject the nodes of a pool that answer worse than the others. Answers of before a node's last ejection do not count
-- again.
function ErrorShare:check(pool, after)
    local ejection = self.parts.ejection
    local of, all = between(pool.nodes, self.older.of, after)
    local is_alone = self:alone(pool.nodes)
    for _, node in ipairs(pool.nodes) do
        local is_bad = excess(node.peer, of[node.peer], all, is_alone) >= self.parts.settings.outlier.error_ratio
        if is_bad and ejection:last_ejected(node.peer) < self.older.at then
            ejection:failed(node.peer, "error_share", pool)
        end
    end
end

--- Compare the nodes of each pool. Without a bad answer of any node since the last time, no share has become larger.
---@param pools table<string, table> by name
---@param peers string[] addresses of all nodes
function ErrorShare:compare(pools, peers)
    local parts, now = self.parts, self.parts.now()
    local interval, bad = parts.settings.outlier.interval_seconds, parts.counts:bad_answers()
    if now < self.next_at or parts.settings.outlier.error_ratio >= 1 or bad == self.bad then
        return
    end
    self.next_at, self.bad = now + interval / 10, bad -- each time costs some microseconds for each node
    if self.newer and now - self.newer.at > interval then
        self.older, self.newer = nil, nil -- of long ago: nothing was bad meanwhile
    end
    local reading = { at = now, of = self:read(peers) }
    for _, pool in pairs(self.older and pools or {}) do
        self:check(pool, reading.of)
    end
    if not self.newer or now - self.newer.at >= interval / 2 then
        self.older, self.newer = self.newer or reading, reading
    end
end

return error_share
