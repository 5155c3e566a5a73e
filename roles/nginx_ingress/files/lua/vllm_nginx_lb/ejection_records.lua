--- What the workers share about ejected nodes. A dictionary has a record of each node that has failed lately. Each
-- worker has a copy of the records, and reads only the changed ones again.

local node_keys = require "vllm_nginx_lb.node_keys"

-- The record, by node_keys; how often records were changed; and the node of each of the last changes.
local RECORD, VERSION, CHANGE = "out", "ejections", "ejection "
-- So many last changes are known. A worker that has missed more reads the records of all nodes.
local CHANGES = 64
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
        version = nil, -- of `known`; nil: the records of all nodes have to be read
        next_change = 0, -- when time alone changes `is_out`
    }, EjectionRecords)
end

--- Use another list of nodes.
---@param peers string[] addresses
function EjectionRecords:use_nodes(peers)
    self.peers, self.version, self.next_change = peers, nil, 0
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
    local version = self.dict:incr(VERSION, 1)
    if version then
        self.dict:set(CHANGE .. version % CHANGES, version .. " " .. peer)
    end
end

--- Read the records of all nodes.
function EjectionRecords:read_all()
    self.known = {}
    for _, peer in ipairs(self.peers) do
        self.known[peer] = self:read(peer)
    end
end

--- Read the records that have changed since the worker's version.
---@return boolean done false: not all changes are known
function EjectionRecords:read_changes(version)
    if not self.version or version - self.version > CHANGES then
        return false
    end
    for change = self.version + 1, version do
        local number, peer = (self.dict:get(CHANGE .. change % CHANGES) or ""):match "^(%d+) (.*)$"
        if tonumber(number) ~= change then
            return false -- a later change has its place, or another worker is about to write it
        end
        self.known[peer] = self:read(peer)
    end
    return true
end

--- Find the nodes that get no requests now, and when that changes next.
function EjectionRecords:find_out()
    local now = self.now()
    self.is_out, self.next_change = {}, math.huge
    for peer, record in pairs(self.known) do
        local returns = math.max(record.ends, record.trial)
        if now >= record.forgotten then
            self.known[peer] = nil
        else
            self.is_out[peer] = now < returns or nil
            self.next_change = math.min(self.next_change, now < returns and returns or record.forgotten)
        end
    end
end

--- The nodes that get no requests now. While no node has failed, this reads one key and no clock.
---@return table<string, boolean> is_out true by address; valid until the next call
function EjectionRecords:out()
    local version = self.dict:get(VERSION) or 0
    if version ~= self.version then
        if not self:read_changes(version) then
            self:read_all()
        end
        self.version = version
        self:find_out()
    elseif self.next_change < math.huge and self.now() >= self.next_change then
        self:find_out()
    end
    return self.is_out
end

return ejection_records
