--- What is under way, counted over all workers, exactly, through reloads and crashes.
--
-- Each worker writes only its own row: for every node the prompt bytes that wait for a first byte, and the open
-- streams. So nothing has to be locked, and the sum of all rows is right at any moment. A worker that drains after a
-- reload keeps its row until it has ended; the row of one that died is removed by those that live. A row is one string
-- of doubles: reading the rows of a thousand nodes takes microseconds, a thousand counters of a dictionary would not.
--
-- Rows have the layout of the list of nodes their worker knows. A worker that drains may know an older one than the
-- others: rows of another layout are added up by address.

local ffi = require "ffi"

local ROW, LAYOUT, CHANGES = "row:", "layout:", "changes"
local ID_LENGTH = 16 -- of a layout's name, which stands in front of each row
local SIZE = ffi.sizeof("double")

local Ledger = {}
Ledger.__index = Ledger

local ledger = {}

--- Open the ledger for one worker; what a dead one with the same process id left behind is gone.
-- @param dict an nginx shared dictionary
-- @tparam number pid of this worker
-- @tparam function is_alive called with a process id
-- @tparam function name called with a text: a name of 16 characters for it, the same in each worker
function ledger.open(dict, pid, is_alive, name)
    local self = setmetatable({
        dict = dict,
        key = ROW .. pid,
        is_alive = is_alive,
        name = name,
        mine = {}, -- by address: what this worker has under way, at nodes that have left the list, too
        others = {}, -- keys of the other workers' rows
        maps = {}, -- by the name of another layout: its slots to ours
    }, Ledger)
    self:use({})
    return self
end

--- Take another list of nodes. What is under way at nodes that are in both stays counted.
-- @tparam {string,...} addresses in the order of their slots, which count from 0
function Ledger:use(addresses)
    local text, slots = table.concat(addresses, "\n"), {}
    for i, address in ipairs(addresses) do
        slots[address] = i - 1
    end
    local size, layout = 2 * #addresses, self.name(text)
    local row = ffi.new("double[?]", ID_LENGTH / SIZE + size + 1)
    local own = row + ID_LENGTH / SIZE -- only `row` keeps the memory
    ffi.copy(row, layout, ID_LENGTH)
    for address, counts in pairs(self.mine) do
        local slot = slots[address]
        if slot then
            own[2 * slot], own[2 * slot + 1] = counts.bytes, counts.streams
        elseif counts.bytes == 0 and counts.streams == 0 then
            self.mine[address] = nil
        end
    end
    self.row, self.own, self.sum = row, own, ffi.new("double[?]", size + 1)
    self.size, self.slots, self.layout, self.maps = size, slots, layout, {}
    self.dict:set(LAYOUT .. layout, text)
    self:write()
    self.dict:incr(CHANGES, 1, 0)
end

--- Write this worker's row, with something random at its end: Lua keeps each string once, and finds it by a hash of a
-- few places of it, its end among them. Rows differ in a few other places, and would all be compared with each other.
function Ledger:write()
    self.own[self.size] = math.random()
    self.dict:set(self.key, ffi.string(self.row, ID_LENGTH + (self.size + 1) * SIZE))
end

--- Count work at a node, negative when it ends. One that has left the list may be in the next one again.
-- @tparam string address of the node
-- @tparam number bytes of prompts that wait for a first byte
-- @tparam number streams open requests
function Ledger:add(address, bytes, streams)
    local counts = self.mine[address]
    if not counts then
        counts = { bytes = 0, streams = 0 }
        self.mine[address] = counts
    end
    counts.bytes, counts.streams = counts.bytes + bytes, counts.streams + streams
    local slot = self.slots[address]
    if slot then
        self.own[2 * slot], self.own[2 * slot + 1] = counts.bytes, counts.streams
        self:write()
    end
end

--- The sums over all workers.
-- @return an array of doubles, valid until the next call: pending bytes at 2 * slot, streams behind it
function Ledger:totals()
    local changes = self.dict:get(CHANGES)
    if changes ~= self.changes then
        self:look()
        self.changes = changes
    end
    local sum, size = self.sum, self.size
    ffi.copy(sum, self.own, size * SIZE)
    for i = 1, #self.others do
        local row = self.dict:get(self.others[i])
        if row then
            self:add_row(row)
        end
    end
    return sum
end

--- Add another worker's row to the sums.
function Ledger:add_row(row)
    local id = row:sub(1, ID_LENGTH)
    local values = ffi.cast("const double *", ffi.cast("const char *", row) + ID_LENGTH)
    local sum = self.sum
    if id == self.layout then
        for i = 0, self.size - 1 do
            sum[i] = sum[i] + values[i]
        end
        return
    end
    for theirs, ours in pairs(self:map(id)) do
        sum[2 * ours] = sum[2 * ours] + values[2 * theirs]
        sum[2 * ours + 1] = sum[2 * ours + 1] + values[2 * theirs + 1]
    end
end

--- Slots of another layout to ours, of the addresses that are in both.
function Ledger:map(id)
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

--- Find the rows of the other workers, and remove those of dead ones and the layouts nobody uses.
function Ledger:look()
    local rows, layouts, used = {}, {}, { [self.layout] = true }
    for _, key in ipairs(self.dict:get_keys(0)) do
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

return ledger
