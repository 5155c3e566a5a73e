--- In-flight work at each node, over all workers. The count stays exact through reloads and crashes of workers.
-- Each worker writes only its own row: for every node the prompt bytes that wait for a first byte, and the open
-- streams. So no lock is needed, and the sum of all rows is right at any moment. An old worker keeps its row after a
-- reload until it ends. The other workers remove the row of a worker that died. A row is one string of doubles: reading
-- a row of a thousand nodes takes microseconds, which a thousand counters would not.
-- The order of the nodes in a row is its layout. An old worker may have an older list of nodes, so another layout: its
-- row is added up by address.

local ffi = require "ffi"

local ROW, LAYOUT, CHANGES = "row:", "layout:", "changes"
local ID_LENGTH = 16 -- of a layout's name, which stands in front of each row
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
---@return InFlight
function in_flight.open(dict, pid, is_alive, name_of)
    local self = setmetatable({
        dict = dict,
        key = ROW .. pid,
        is_alive = is_alive,
        name_of = name_of,
        own = {}, -- by address: this worker's in-flight work, also at nodes that have left the list
        others = {}, -- keys of the other workers' rows
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
    local row = ffi.new("double[?]", ID_LENGTH / SIZE + size + 1)
    local counts = row + ID_LENGTH / SIZE -- only `row` keeps the memory
    ffi.copy(row, layout, ID_LENGTH)
    for address, own in pairs(self.own) do
        local slot = slots[address]
        if slot then
            counts[2 * slot], counts[2 * slot + 1] = own.bytes, own.streams
        elseif own.bytes == 0 and own.streams == 0 then
            self.own[address] = nil
        end
    end
    self.row, self.counts, self.sum = row, counts, ffi.new("double[?]", size + 1)
    self.size, self.slots, self.layout, self.maps = size, slots, layout, {}
    self.dict:set(LAYOUT .. layout, text)
    self:write_row()
    self.dict:incr(CHANGES, 1)
end

--- Write this worker's row, with random bytes at its end. LuaJIT keeps each string once, and finds it by a hash of a
-- few places, the end among them. Rows differ in few places. Without random bytes many rows would have one hash, and
-- would all be compared with each other.
function InFlight:write_row()
    self.counts[self.size] = math.random()
    self.dict:set(self.key, ffi.string(self.row, ID_LENGTH + (self.size + 1) * SIZE))
end

--- Add work at a node; negative numbers when work ends. A node that has left the list may return with the next one.
---@param address string of the node
---@param bytes number of prompts that wait for a first byte
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
        self.counts[2 * slot], self.counts[2 * slot + 1] = own.bytes, own.streams
        self:write_row()
    end
end

--- The sums over all workers.
---@return number[] totals doubles, valid until the next call: pending bytes at 2 * slot, streams at 2 * slot + 1
function InFlight:totals()
    local changes = self.dict:get(CHANGES)
    if changes ~= self.changes then
        self:find_rows()
        self.changes = changes
    end
    local sum = self.sum
    ffi.copy(sum, self.counts, self.size * SIZE)
    for i = 1, #self.others do
        local row = self.dict:get(self.others[i])
        if row then
            self:add_row(row)
        end
    end
    return sum
end

--- Add another worker's row to the sums.
function InFlight:add_row(row)
    local id = row:sub(1, ID_LENGTH)
    local values = ffi.cast("const double *", ffi.cast("const char *", row) + ID_LENGTH)
    local sum = self.sum
    if id == self.layout then
        for i = 0, self.size - 1 do
            sum[i] = sum[i] + values[i]
        end
        return
    end
    for theirs, ours in pairs(self:map_of(id)) do
        sum[2 * ours] = sum[2 * ours] + values[2 * theirs]
        sum[2 * ours + 1] = sum[2 * ours + 1] + values[2 * theirs + 1]
    end
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
    local rows, layouts, used = {}, {}, { [self.layout] = true }
    for _, key in ipairs(self.dict:get_keys()) do
        if key:sub(1, #LAYOUT) == LAYOUT then
            layouts[#layouts + 1] = key:sub(#LAYOUT + 1)
        elseif key:sub(1, #ROW) == ROW and key ~= self.key then
            if self.is_alive(tonumber(key:sub(#ROW + 1))) then
                local row = self.dict:get(key)
                if row then
                    rows[#rows + 1] = key
                    used[row:sub(1, ID_LENGTH)] = true
                end
            else
                self.dict:delete(key)
            end
        end
    end
    self.others = rows
    for _, id in ipairs(layouts) do
        if not used[id] then
            self.dict:delete(LAYOUT .. id)
        end
    end
end

return in_flight
