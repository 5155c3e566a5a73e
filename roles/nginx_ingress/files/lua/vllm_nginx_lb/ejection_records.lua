--- What the workers share about ejected nodes: a record for each node that has failed lately, in a dictionary, and each
-- worker's copy of all of them, which it reads again when one has changed.

local node_keys = require "vllm_nginx_lb.node_keys"

local RECORD, VERSION = "out", "ejections" -- of node_keys; how often the records of all nodes were changed
-- A record as text.
local WRITTEN, READ = "%d %.6f %.6f %.6f %.6f %s", "^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$"

---@class EjectionRecord all times are of clock.lua
---@field fails integer how often it was ejected in a row
---@field since number when it was ejected last
---@field ends number when the ejection ends
---@field trial number 0: no trial yet; else when the trial that is under way ends; PASSED: it was good
---@field forgotten number when all of it is forgotten
---@field cause string of ejection.CAUSES

---@class EjectionRecords
---@field known table<string, EjectionRecord> by address, as of the last call of `out`
local EjectionRecords = {}
EjectionRecords.__index = EjectionRecords

local ejection_records = { PASSED = -1 }

--- Keep records in a dictionary.
---@param dict SharedDict
---@param now fun(): number seconds of clock.lua
---@return EjectionRecords
function ejection_records.new(dict, now)
    return setmetatable({
        dict = dict,
        now = now,
        peers = {}, -- addresses of all nodes
        known = {},
        is_out = {}, -- by address: true for the nodes that get no requests
        version = nil, -- of `known`
        next_change = math.huge, -- when time alone changes `is_out`
    }, EjectionRecords)
end

--- Use another list of nodes.
---@param peers string[] addresses
function EjectionRecords:use_nodes(peers)
    self.peers, self.next_change = peers, 0
end

--- The record of a node; nil if it has not failed lately.
---@param peer string its address
---@return EjectionRecord|nil
function EjectionRecords:read(peer)
    local text = self.dict:get(node_keys.of(RECORD, peer))
    local fails, since, ends, trial, forgotten, cause = (text or ""):match(READ)
    if not fails or self.now() >= tonumber(forgotten) then
        return nil
    end
    return {
        fails = tonumber(fails),
        since = tonumber(since),
        ends = tonumber(ends),
        trial = tonumber(trial),
        forgotten = tonumber(forgotten),
        cause = cause,
    }
end

--- Write the record of a node. The other workers see that the version has changed.
---@param peer string its address
---@param record EjectionRecord|nil nil: it has not failed
function EjectionRecords:write(peer, record)
    local key = node_keys.of(RECORD, peer)
    if record then
        local it = record
        local text = WRITTEN:format(it.fails, it.since, it.ends, it.trial, it.forgotten, it.cause)
        self.dict:set(key, text)
    else
        self.dict:delete(key)
    end
    self.dict:incr(VERSION, 1)
end

--- Read the records of all nodes again.
function EjectionRecords:read_all()
    local now, next_change = self.now(), math.huge
    self.known, self.is_out = {}, {}
    for _, peer in ipairs(self.peers) do
        local record = self:read(peer)
        if record then
            self.known[peer] = record
            local returns = math.max(record.ends, record.trial)
            self.is_out[peer] = now < returns or nil
            next_change = math.min(next_change, now < returns and returns or record.forgotten)
        end
    end
    self.next_change = next_change
end

--- The nodes that get no requests now. While no node has failed, this reads one key and no clock.
---@return table<string, boolean> is_out true by address; valid until the next call
function EjectionRecords:out()
    local version = self.dict:get(VERSION)
    if version ~= self.version or self.next_change < math.huge and self.now() >= self.next_change then
        self:read_all()
        self.version = version
    end
    return self.is_out
end

return ejection_records
