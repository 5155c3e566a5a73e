--- The share of each client in a full prefix memory. A client that adds more marks than that loses its own oldest ones.
-- Each client has a ring of places in the same memory, and each place holds the next few marks that the client added.
-- The mark that begins a place anew removes those that the place held.
-- Two workers that write one place at the same moment may lose a mark from it. Such a mark stays until it is the least
-- recently used one, like the marks that were added before the memory was full.

local SHARE = 1 / 4 -- of the memory
local MARK_LENGTH = 16
local IN_A_PLACE = 16 -- marks
local BYTES = 160 + 512 / IN_A_PLACE -- of memory for a mark and its part of a place, measured

---@class MarkShares
---@field places integer how many each client has
local MarkShares = {}
MarkShares.__index = MarkShares

local mark_shares = {}

---@param dict SharedDict of the marks
---@return MarkShares
function mark_shares.new(dict)
    local marks = dict:capacity() * SHARE / BYTES
    return setmetatable({ dict = dict, places = math.max(1, math.floor(marks / IN_A_PLACE)) }, MarkShares)
end

--- Write marks into a place.
---@param is_anew boolean true: they are the first ones, and what the place held is removed from the memory
function MarkShares:write(place, marks, is_anew)
    local held = self.dict:get(place) or ""
    if is_anew then
        for at = 1, #held, MARK_LENGTH do
            self.dict:delete(held:sub(at, at + MARK_LENGTH - 1))
        end
        held = ""
    end
    self.dict:set(place, held .. marks)
end

--- Make room for marks that a client adds now, if the memory is full: remove as many of its oldest ones as it has too
-- many.
---@param client string
---@param marks string[] of MARK_LENGTH each
function MarkShares:make_room(client, marks)
    if #marks == 0 or self.dict:free_space() > 0 then
        return
    end
    local added = (self.dict:incr("client " .. client, #marks) or #marks) - #marks
    local from = 1
    while from <= #marks do
        local inside = added % IN_A_PLACE
        local to = math.min(#marks, from + IN_A_PLACE - inside - 1)
        local place = ("place %d %s"):format(math.floor(added / IN_A_PLACE) % self.places, client)
        self:write(place, table.concat(marks, "", from, to), inside == 0)
        added, from = added + to - from + 1, to + 1
    end
end

return mark_shares
