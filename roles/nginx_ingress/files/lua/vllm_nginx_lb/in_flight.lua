--- In-flight work at each node, over all workers. The count stays exact through reloads and crashes of workers.
-- Each worker writes only its own row (work_row.lua). So no lock is needed, and the sum of all rows is right at any
-- moment. An old worker keeps its row after a reload until it ends. The other workers remove the row of a worker that
-- died. A row is one string, and reading it takes a microsecond. Reading a counter for each of a thousand nodes would
-- take far longer.
-- The order of the nodes is the layout of a row. An old worker may have an older list of nodes, so another layout: its
-- row is added up by address.

local ffi = require "ffi"
local work_row = require "vllm_nginx_lb.work_row"

-- The former release has rows of another format, under other keys.
local ROW, LAYOUT, CHANGES = "work:", "order:", "changes"
local SIZE = ffi.sizeof "double"

---@class InFlight
local InFlight = {}
InFlight.__index = InFlight

local in_flight = {}

--- Begin to count in one worker. The row of a dead worker with the same process id is dropped.
---@param dict SharedDict
---@param pid integer of this worker
---@param is_alive fun(pid: integer): boolean
---@param name_of fun(text: string): string a name of 16 characters for a text, the same in each worker
---@param on_dead fun(pid: integer)|nil called when the row of a worker that died is removed
---@return InFlight
function in_flight.open(dict, pid, is_alive, name_of, on_dead)
    local self = setmetatable({
        dict = dict,
        key = ROW .. pid,
        is_alive = is_alive,
        name_of = name_of,
        own = {}, -- by address: this worker's in-flight work, also at nodes that have left the list
        others = {}, -- keys of the other workers' rows
        pids = {}, -- of the other workers
        on_dead = on_dead or function() end,
        maps = {}, -- by the name of another layout: our slot for each of its slots
    }, InFlight)
    self:use_nodes {}
    return self
end

--- Use another list of nodes. In-flight work at nodes of both lists stays counted.
---@param addresses string[] in the order of their slots, which count from 0
function InFlight:use_nodes(addresses)
    local text, slots = table.concat(addresses, "\n"), {}
    for i, address in ipairs(addresses) do
        slots[address] = i - 1
    end
    local size, layout = 2 * #addresses, self.name_of(text)
    self.size, self.slots, self.layout, self.maps = size, slots, layout, {}
    self.row = work_row.new(layout)
    self.counts, self.sum = ffi.new("double[?]", size + 1), ffi.new("double[?]", size + 1)
    for address, own in pairs(self.own) do
        if slots[address] then
            self:put(slots[address], own)
        elseif own.bytes == 0 and own.streams == 0 then
            self.own[address] = nil
        end
    end
    self.dict:set(LAYOUT .. layout, text)
    self:write_row()
    self.dict:incr(CHANGES, 1)
end

--- Put this worker's work at a node into its row, and into its part of the sums.
function InFlight:put(slot, own)
    self.row:put(slot, own.bytes, own.streams)
    self.counts[2 * slot], self.counts[2 * slot + 1] = own.bytes, own.streams
end

function InFlight:write_row()
    self.dict:set(self.key, self.row:text())
end

--- Add work at a node; negative numbers when work ends. A node that has left the list may return with the next one.
---@param address string of the node
---@param bytes number of prompts that are pending
---@param streams integer open requests
function InFlight:add(address, bytes, streams)
    local own = self.own[address]
    if not own then
        own = { bytes = 0, streams = 0 }
        self.own[address] = own
    end
    own.bytes, own.streams = own.bytes + bytes, own.streams + streams
    local slot = self.slots[address]
    if slot then
        self:put(slot, own)
        self:write_row()
    end
end

--- Find the rows of the other workers if one has begun or has another list of nodes.
function InFlight:follow_changes()
    local changes = self.dict:get(CHANGES)
    if changes ~= self.changes then
        self:find_rows()
        self.changes = changes
    end
end

--- The process ids of the other workers. A dead one is among them until rows are searched the next time.
---@return integer[]
function InFlight:other_pids()
    self:follow_changes()
    return self.pids
end

--- Call a function with each other worker's row, and our slot for each of its slots where these differ.
function InFlight:each_other(use, ...)
    self:follow_changes()
    for i = 1, #self.others do
        local row = self.dict:get(self.others[i])
        if row then
            local layout = work_row.layout_of(row)
            use(row, layout ~= self.layout and self:map_of(layout) or nil, ...)
        end
    end
end

--- The sums over all workers.
---@return number[] totals doubles, valid until the next call: pending bytes at 2 * slot, streams at 2 * slot + 1
function InFlight:totals()
    ffi.copy(self.sum, self.counts, self.size * SIZE)
    self:each_other(work_row.add, self.sum)
    return self.sum
end

--- The open streams of one node over all workers, as of now.
---@param slot integer of the node
---@return integer
function InFlight:streams_at(slot)
    local streams = self.counts[2 * slot + 1]
    self:each_other(function(row, map)
        streams = streams + work_row.streams_at(row, map, slot)
    end)
    return streams
end

--- Our slot for each slot of another layout, if its address is in both.
function InFlight:map_of(id)
    local found = self.maps[id]
    if not found then
        found = {}
        local text, slot = self.dict:get(LAYOUT .. id), 0
        for address in (text or ""):gmatch "[^\n]+" do
            found[slot] = self.slots[address]
            slot = slot + 1
        end
        self.maps[id] = text and found
    end
    return found
end

--- Find the rows of the other workers. Remove the rows of dead workers and the layouts without a row.
function InFlight:find_rows()
    local rows, pids, layouts, used = {}, {}, {}, { [self.layout] = true }
    for _, key in ipairs(self.dict:get_keys()) do
        if key:sub(1, #LAYOUT) == LAYOUT then
            layouts[#layouts + 1] = key:sub(#LAYOUT + 1)
        elseif key:sub(1, #ROW) == ROW and key ~= self.key then
            local pid = tonumber(key:sub(#ROW + 1))
            if self.is_alive(pid) then
                local row = self.dict:get(key)
                if row then
                    rows[#rows + 1], pids[#pids + 1] = key, pid
                    used[work_row.layout_of(row)] = true
                end
            else
                self.dict:delete(key)
                self.on_dead(pid)
            end
        end
    end
    self.others, self.pids = rows, pids
    for _, id in ipairs(layouts) do
        if not used[id] then
            self.dict:delete(LAYOUT .. id)
        end
    end
end

return in_flight
