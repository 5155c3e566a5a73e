--- One worker's row of in-flight work, as one string: the nodes where it has work, with their pending bytes and
-- streams. The string has the name of the layout, which is the order of the nodes, and then doubles: the entries and a
-- random number.
-- LuaJIT keeps each string once, and finds it by a hash of a few places, the end among them. Rows differ in few places.
-- Without random bytes many rows would have one hash, and would all be compared with each other.

local ffi = require "ffi"

local SIZE = ffi.sizeof "double"
local LAYOUT_LENGTH = 16 -- of a layout's name
local HEAD = LAYOUT_LENGTH / SIZE -- doubles in front of the entries
local ENTRY = 3 -- doubles: the slot of a node, its pending bytes, its streams; an unused entry is all zeros
-- A row has room for so many entries at least, and grows by doubling: its size in shared memory changes seldom.
local LEAST_ROOM = 16

---@class WorkRow
local WorkRow = {}
WorkRow.__index = WorkRow

local work_row = {}

--- An empty row.
---@param layout string a name of 16 characters
---@return WorkRow
function work_row.new(layout)
    local self = setmetatable({ layout = layout, room = LEAST_ROOM / 2, used = 0, index_of = {} }, WorkRow)
    self:grow()
    return self
end

--- Make room for twice as many entries.
function WorkRow:grow()
    local former, room = self.values, 2 * self.room
    self.values, self.room = ffi.new("double[?]", HEAD + ENTRY * room + 1), room
    if former then
        ffi.copy(self.values, former, (HEAD + ENTRY * self.used) * SIZE)
    else
        ffi.copy(self.values, self.layout, LAYOUT_LENGTH)
    end
end

--- Write an entry.
function WorkRow:set(index, slot, bytes, streams)
    local at = HEAD + ENTRY * index
    self.values[at], self.values[at + 1], self.values[at + 2] = slot, bytes, streams
    self.index_of[slot] = index
end

--- Remove a node's entry. The last entry takes its place.
function WorkRow:remove(slot)
    local index, last = self.index_of[slot], self.used - 1
    local at = HEAD + ENTRY * last
    local values = self.values
    self:set(index, values[at], values[at + 1], values[at + 2])
    values[at], values[at + 1], values[at + 2] = 0, 0, 0
    self.index_of[slot], self.used = nil, last
end

--- Set the work at a node.
---@param slot integer of the node in the layout, from 0
---@param bytes number pending
---@param streams integer
function WorkRow:put(slot, bytes, streams)
    local index = self.index_of[slot]
    if bytes == 0 and streams == 0 then
        if index then
            self:remove(slot)
        end
        return
    elseif not index then
        if self.used == self.room then
            self:grow()
        end
        index, self.used = self.used, self.used + 1
    end
    self:set(index, slot, bytes, streams)
end

--- The row as a string.
---@return string
function WorkRow:text()
    local last = HEAD + ENTRY * self.room
    self.values[last] = math.random()
    return ffi.string(self.values, (last + 1) * SIZE)
end

--- The name of the layout of a row.
---@param text string
---@return string
function work_row.layout_of(text)
    return text:sub(1, LAYOUT_LENGTH)
end

--- Add the work of a row to sums.
---@param text string of a row
---@param map table<integer, integer>|nil our slot for each of its slots; nil: they are the same
---@param sum number[] pending bytes at 2 * slot, streams at 2 * slot + 1
function work_row.add(text, map, sum)
    local entries = ffi.cast("const double *", ffi.cast("const char *", text) + LAYOUT_LENGTH)
    for at = 0, #text / SIZE - HEAD - 1 - ENTRY, ENTRY do
        local slot = entries[at]
        if map then
            slot = map[slot]
        end
        if slot then
            sum[2 * slot] = sum[2 * slot] + entries[at + 1]
            sum[2 * slot + 1] = sum[2 * slot + 1] + entries[at + 2]
        end
    end
end

--- The streams of a row at one node.
---@param text string of a row
---@param map table<integer, integer>|nil see work_row.add
---@param wanted integer our slot of the node
---@return integer
function work_row.streams_at(text, map, wanted)
    local entries = ffi.cast("const double *", ffi.cast("const char *", text) + LAYOUT_LENGTH)
    for at = 0, #text / SIZE - HEAD - 1 - ENTRY, ENTRY do
        local slot, streams = entries[at], entries[at + 2]
        if map then
            slot = map[slot]
        end
        if slot == wanted and streams > 0 then -- an unused entry has the slot 0, too
            return streams
        end
    end
    return 0
end

return work_row
