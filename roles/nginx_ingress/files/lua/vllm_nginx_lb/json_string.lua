--- Where a string of JSON ends.

local BACKSLASH = ("\\"):byte()

local json_string = {}

--- Whether the run of backslashes up to `last` is odd. It may have begun before `from`: then `was_odd` tells.
local function is_odd_run(piece, from, last, was_odd)
    local at = last
    while at >= from and piece:byte(at) == BACKSLASH do
        at = at - 1
    end
    local before = at < from and was_odd and 1 or 0
    return (last - at + before) % 2 == 1
end

--- Find the quote that ends a string. Finding the next quote is the fastest way through a text in LuaJIT, though code
-- has many escaped ones (docs/decisions.md).
---@param piece string
---@param at integer where the string goes on in the piece
---@param is_escaped boolean whether an odd number of its backslashes is right before that place
---@return integer|nil quote nil: it is not in this piece
---@return boolean is_escaped whether the next piece begins behind an odd number of backslashes
function json_string.find_end(piece, at, is_escaped)
    while true do
        local quote = piece:find('"', at, true)
        is_escaped = is_odd_run(piece, at, (quote or #piece + 1) - 1, is_escaped)
        if not quote or not is_escaped then
            return quote, is_escaped
        end
        at, is_escaped = quote + 1, false
    end
end

return json_string
