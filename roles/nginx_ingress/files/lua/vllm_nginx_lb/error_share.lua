--- Nodes with a larger share of bad answers than the other nodes of their pool, over a sliding interval. Each worker
-- compares the counts of node_counts.lua now with those of an interval ago.

local outcome = require "vllm_nginx_lb.outcome"

-- Answers with these labels count by how much larger their share is at this node than at the others. Wrong requests
-- earn refusals too, but at all nodes alike: affinity does not send them to one node again and again
-- (affinity/session.lua). Two labels do not count: a 503 may say that the node is full, and a node that cannot be
-- reached is ejected at once.
local COUNTS = {}
for label, is_bad in pairs(outcome.IS_BAD) do
    COUNTS[label] = is_bad and label ~= "503" and label ~= "unreachable"
end
local IS_LEFT_OUT = { left = true, [outcome.LIGHT] = true }
-- Of fewer answers, a share says little. Where nodes give few answers, the interval is up to STRETCH times as long.
local LEAST_ANSWERS, STRETCH = 10, 6

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

--- The answers since nginx has started: `of` each node of a list, by address and label, and `answers`, their number.
function ErrorShare:read(peers)
    local counts, labels, of, answers = self.parts.counts, self.parts.counts:labels(), {}, 0
    for _, peer in ipairs(peers) do
        local found = {}
        for _, label in ipairs(labels) do
            found[label] = counts:times_answered(peer, label)
            answers = answers + (IS_LEFT_OUT[label] and 0 or found[label])
        end
        of[peer] = found
    end
    return { at = self.parts.now(), of = of, answers = answers }
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

--- By how much a node's share of bad answers is larger than the others'.
local function excess(one, all)
    local others, sum = all.answers - one.answers, 0
    if one.answers < LEAST_ANSWERS or others < LEAST_ANSWERS then
        return 0
    end
    for label, times in pairs(one.by_label) do
        if COUNTS[label] then
            sum = sum + times / one.answers - (all.by_label[label] - times) / others
        end
    end
    return sum
end

--- Eject the nodes of a pool that answer worse than the others. Answers of before a node's last ejection do not count
-- again.
function ErrorShare:check(pool, after)
    local ejection = self.parts.ejection
    local of, all = between(pool.nodes, self.older.of, after)
    for _, node in ipairs(pool.nodes) do
        local is_bad = excess(of[node.peer], all) >= self.parts.settings.outlier.error_ratio
        if is_bad and ejection:last_ejected(node.peer) < self.older.at then
            ejection:failed(node.peer, "error_share", pool)
        end
    end
end

--- Whether the last reading is too old to compare with: many good answers since then would hide the new bad ones.
function ErrorShare:is_stale(reading, needed)
    local interval = self.parts.settings.outlier.interval_seconds
    local age, new = reading.at - self.newer.at, reading.answers - self.newer.answers
    return age > interval * STRETCH or age > interval and new > 4 * needed
end

--- Whether a reading may follow the last one: half an interval has passed, and there were answers enough.
function ErrorShare:is_next(reading, needed)
    local age, new = reading.at - self.newer.at, reading.answers - self.newer.answers
    return age >= self.parts.settings.outlier.interval_seconds / 2 and new >= needed
end

--- Compare the nodes of each pool. Without a bad answer of any node since the last time, no share has become larger.
---@param pools table<string, table> by name
---@param peers string[] addresses of all nodes
function ErrorShare:compare(pools, peers)
    local parts, now = self.parts, self.parts.now()
    local settings, bad = parts.settings.outlier, parts.counts:bad_answers()
    if now < self.next_at or settings.error_ratio >= 1 or bad == self.bad then
        return
    end
    self.bad = bad
    self.next_at = now + settings.interval_seconds / 10 -- each time costs some microseconds for each node
    local reading, needed = self:read(peers), LEAST_ANSWERS * #peers / 2
    if self.newer and self:is_stale(reading, needed) then
        self.older, self.newer = nil, nil
    end
    for _, pool in pairs(self.older and pools or {}) do
        self:check(pool, reading.of)
    end
    if not self.newer or self:is_next(reading, needed) then
        self.older, self.newer = self.newer or reading, reading
    end
end

return error_share
