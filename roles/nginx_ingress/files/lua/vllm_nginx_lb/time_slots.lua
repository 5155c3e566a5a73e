--- Things by the slot of time in which they are due, so that a look for due ones touches no others. Pure.

local STEP = 0.05 -- s, of a slot
local MOST_SLOTS = 1500 -- nothing is put further ahead

local NOTHING = {}

---@class TimeSlots
---@field slots table<integer, table[]> by the number of the slot
---@field next_slot integer|nil the first one that was not looked at; nil: nothing was put in yet
local TimeSlots = {}
TimeSlots.__index = TimeSlots

local time_slots = {}

--- Nothing is due.
---@return TimeSlots
function time_slots.new()
    return setmetatable({ slots = {} }, TimeSlots)
end

--- Put a thing into the first slot after a time.
---@param thing table
---@param at number seconds of clock.lua, less than 75 from now
---@param now number seconds of clock.lua
---@return integer slot
function TimeSlots:put(thing, at, now)
    self.next_slot = self.next_slot or math.floor(now / STEP)
    local slot = math.max(math.ceil(at / STEP), self.next_slot)
    local things = self.slots[slot] or {}
    self.slots[slot] = things
    things[#things + 1] = thing
    return slot
end

--- Take out what is due by now, the earliest first.
---@param now number seconds of clock.lua
---@return table[] things
function TimeSlots:due(now)
    local first, last = self.next_slot, math.floor(now / STEP)
    if not first or last < first then
        return NOTHING
    end
    self.next_slot = last + 1
    local found = {}
    for slot = first, math.min(last, first + MOST_SLOTS) do
        for _, thing in ipairs(self.slots[slot] or NOTHING) do
            found[#found + 1] = thing
        end
        self.slots[slot] = nil
    end
    return found
end

--- Whether a slot was looked at.
---@param slot integer
---@return boolean
function TimeSlots:is_over(slot)
    return slot < self.next_slot
end

return time_slots
