--- Nodes that give several bad answers in a row, while another node of the pool gives good answers and no such bad one.
-- So neither requests that are wrong at each node nor a fault of all nodes eject a node.

local node_keys = require "vllm_nginx_lb.node_keys"
local outcome = require "vllm_nginx_lb.outcome"

-- The rows of bad answers, by kind (outcome.lua). Each has the cause of the ejection that it leads to, and the names of
-- two facts in the dictionary: its length, and when it began. A client that has left counts as a bad answer if it had
-- waited for `leaver_seconds`. `cut`: the node has broken off what had begun as a good answer.
local ROWS = {
    cut = { cause = "errors", length = "cuts", began = "cuts since" },
    fault = { cause = "errors", length = "faults", began = "faults since" },
    refusal = { cause = "refusals", length = "refusals", began = "refusals since" },
    left = { cause = "silent", length = "silences", began = "silences since" },
}
-- Other facts: ANY, whether the dictionary may have facts of a row; FULL, since when a node says that it is full;
-- LAST_FULL, when it last said so.
local ANY, FULL, LAST_FULL = "rows", "full", "last full"
-- A node that has not said that it is full for this part of `stall_seconds` may have had room in between.
local FULL_GAP = 0.1
-- After these causes, a refusal shows that the node works again. After the other causes it shows nothing.
local ENDED_BY_REFUSAL = { unreachable = true, broken = true, timed_out = true, gateway = true }
-- After a search for a better node without result, the next one waits: it reads facts of all nodes.
local SEARCH_SECONDS = 0.05

---@class Outlier
local Outlier = {}
Outlier.__index = Outlier

local outlier = {}

---@class OutlierParts
---@field settings table `outlier`: `row`, how many bad answers in a row eject, 0: none; `leavers`, how many clients
--- that leave; `leaver_seconds`, how long a client must have waited; and `stall_seconds`, for how long a node may say
--- that it is full
---@field dict SharedDict
---@field ejection Ejection
---@field counts NodeCounts
---@field now fun(): number seconds of clock.lua

---@param parts OutlierParts
---@return Outlier
function outlier.new(parts)
    return setmetatable({ parts = parts, search_at = {} }, Outlier) -- when each pool may be searched again
end

--- Whether another node of a pool has given a good answer since a time, and no answer of the label since then. For
-- errors and refusals, no such answer for COMMON_SECONDS either.
function Outlier:is_another_better(pool, peer, since, kind, label)
    local counts, spotless_since = self.parts.counts, since
    if kind ~= "left" then
        spotless_since = math.min(since, self.parts.now() - outcome.COMMON_SECONDS)
    end
    for _, node in ipairs(pool.nodes) do
        local other = node.peer
        if other ~= peer and counts:last_output(other) > since then
            if counts:last_gave(other, label) < spotless_since then
                return true
            end
        end
    end
    return false
end

--- Add a bad answer to a node's row. If the row is long enough and another node is better, eject the node.
function Outlier:add_to_row(it, kind, label)
    local dict, now, settings = self.parts.dict, self.parts.now(), self.parts.settings.outlier
    local row, peer, pool = ROWS[kind], it.peer, it.pool
    local long, began = settings.row > 0 and settings.row or math.huge, now
    if kind == "left" then
        long, began = settings.leavers, it.sent_at
    end
    dict:set(node_keys.of(ANY, peer), true)
    dict:add(node_keys.of(row.began, peer), began)
    local length = dict:incr(node_keys.of(row.length, peer), 1) or 0
    local name = pool.name or ""
    if length < long or now < (self.search_at[name] or 0) then
        return
    end
    if self:is_another_better(pool, peer, dict:get(node_keys.of(row.began, peer)) or now, kind, label) then
        self.parts.ejection:failed(peer, row.cause, pool)
    else
        self.search_at[name] = now + SEARCH_SECONDS
    end
end

--- Whether a node has said for too long that it is full, without a good answer.
function Outlier:is_full_for_too_long(peer, now)
    local dict, stall_seconds = self.parts.dict, self.parts.settings.stall_seconds
    local since, last = node_keys.of(FULL, peer), node_keys.of(LAST_FULL, peer)
    dict:set(node_keys.of(ANY, peer), true)
    if now - (dict:get(last) or -math.huge) > FULL_GAP * stall_seconds then
        dict:set(since, now)
    end
    dict:set(last, now)
    return now - (dict:get(since) or now) > stall_seconds
end

--- What a bad answer counts as: a kind of ROWS, or nil.
function Outlier:counted_as(it, kind, label)
    local settings, now = self.parts.settings, self.parts.now()
    if label == outcome.CUT_OFF then
        return "cut"
    elseif kind == "full" then
        return self:is_full_for_too_long(it.peer, now) and "fault" or nil
    elseif kind == "left" and now - it.sent_at < settings.outlier.leaver_seconds then
        return nil
    end
    return ROWS[kind] and kind
end

--- Note a bad answer.
---@param it Request at its node
---@param kind string of outcome.lua
---@param label string of outcome.lua
function Outlier:bad(it, kind, label)
    local parts = self.parts
    kind = self:counted_as(it, kind, label)
    if not kind then
        return
    end
    parts.counts:gave(it.peer, label, parts.now())
    if kind == "refusal" and it.origin then
        parts.counts:refused(it.peer, it.origin, parts.now())
    end
    local cause = parts.ejection:cause(it.peer)
    if cause and ENDED_BY_REFUSAL[cause] and kind == "refusal" then
        parts.ejection:succeeded(it.peer)
    elseif it.is_trial and cause and (kind ~= "refusal" or cause == "refusals" or cause == "error_share") then
        parts.ejection:failed(it.peer, cause, it.pool) -- its trial has failed
    end
    -- A request that was sent before the node's last ejection shows nothing new.
    if it.sent_at >= parts.ejection:last_ejected(it.peer) and (it.is_trial or not cause) then
        self:add_to_row(it, kind, label)
    end
end

--- Note a good answer: the rows of its node end. An answer that has only begun may still be cut off.
---@param peer string the node's address
---@param is_complete boolean|nil true: the answer has ended; nil: a stream has begun
function Outlier:good(peer, is_complete)
    local dict = self.parts.dict
    if not dict:get(node_keys.of(ANY, peer)) then
        return
    end
    dict:delete(node_keys.of(FULL, peer))
    dict:delete(node_keys.of(LAST_FULL, peer))
    for kind, row in pairs(ROWS) do
        if is_complete or kind ~= "cut" then
            dict:delete(node_keys.of(row.length, peer))
            dict:delete(node_keys.of(row.began, peer))
        end
    end
    if is_complete then
        dict:delete(node_keys.of(ANY, peer))
    end
end

return outlier
