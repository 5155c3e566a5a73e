--- Find the model that a request asks for, without parsing all of its JSON: a body may have megabytes of images.
-- A search sees a body in pieces and keeps a few hundred bytes of it, however long the body is.

local cjson = require "cjson.safe"

local QUOTE, BACKSLASH, COMMA, COLON, OPEN, OPEN_LIST, CLOSE, CLOSE_LIST = ('"\\,:{[}]'):byte(1, -1)
local IS_MARK = {}
for _, byte in ipairs { QUOTE, COMMA, COLON, OPEN, OPEN_LIST, CLOSE, CLOSE_LIST } do
    IS_MARK[byte] = true
end
local LONGEST = 256 -- of a name, in characters
local LONGEST_ESCAPED = 6 * LONGEST
local NOT_BLANK = "[^%s\239\187\191]" -- neither white space nor a byte order mark

---@class ModelSearch
---@field has_begun boolean the object has begun
---@field is_over boolean no further piece can change the answer
---@field depth integer how many objects and lists are open
---@field key string|nil the last key of the outermost object; "": its value is not wanted; nil: a key comes next
---@field awaits_value boolean the colon after the key `model` came last, besides white space
---@field is_in_string boolean
---@field is_escaped boolean an odd number of backslashes came last, in a string
---@field kept string[]|nil the pieces of the present string, if it is a key or a name
---@field kept_bytes integer
---@field found string|nil
local Search = {}
Search.__index = Search

local model = {}

--- A search that has seen nothing.
---@return ModelSearch
function model.search()
    return setmetatable({ has_begun = false, is_over = false, depth = 0, is_in_string = false }, Search)
end

--- Whether the run of backslashes up to `last` is odd. It may have begun before `from`: then `was_odd` tells.
local function is_odd_run(piece, from, last, was_odd)
    local at = last
    while at >= from and piece:byte(at) == BACKSLASH do
        at = at - 1
    end
    local before = at < from and was_odd and 1 or 0
    return (last - at + before) % 2 == 1
end

function Search:begin_string()
    local is_wanted = self.depth == 1 and (self.key == nil or self.key == "model")
    self.is_in_string, self.is_escaped = true, false
    self.kept, self.kept_bytes = is_wanted and {} or nil, 0
end

--- Keep a part of a key or a name, unless it is too long for a name.
function Search:keep(piece, first, last)
    self.kept_bytes = self.kept_bytes + last - first + 1
    if self.kept_bytes <= LONGEST_ESCAPED then
        self.kept[#self.kept + 1] = piece:sub(first, last)
    end
end

--- The kept string; nil if it is too long for a name.
function Search:kept_text()
    if self.kept_bytes > LONGEST_ESCAPED then
        return nil
    end
    local text = table.concat(self.kept)
    if text:find("\\", 1, true) then
        text = cjson.decode('"' .. text .. '"')
    end
    return text and #text <= LONGEST and text or nil
end

function Search:end_string()
    self.is_in_string = false
    if self.kept and self.key == nil then
        self.key = self:kept_text() or ""
    elseif self.kept then
        self.found, self.key = self:kept_text(), ""
    end
    self.kept = nil
end

--- Pass a string, or the part of it that is in this piece.
---@return integer at where the piece goes on
function Search:pass_string(piece, at)
    local from = at
    while true do
        local quote = piece:find('"', from, true)
        local last = (quote or #piece + 1) - 1
        local is_escaped = is_odd_run(piece, from, last, self.is_escaped)
        self.is_escaped = not quote and is_escaped
        if not quote or not is_escaped then
            if self.kept then
                self:keep(piece, at, last)
            end
            if quote then
                self:end_string()
            end
            return last + 2
        end
        from = quote + 1
    end
end

--- Pass the white space before the value of `model`. A value that is no string is no name.
---@return integer at where the piece goes on
function Search:pass_blank(piece, at)
    local value = piece:find("%S", at)
    if value then
        self.awaits_value = false
        if piece:byte(value) ~= QUOTE then
            self.found, self.key = nil, ""
        end
    end
    return value or #piece + 1
end

--- Pass all that is no string, in one loop, which LuaJIT compiles: a body may be 60 MB of brackets.
---@return integer at where the piece goes on
function Search:pass_marks(piece, at)
    local depth = self.depth
    for i = at, #piece do
        local byte = piece:byte(i)
        if not IS_MARK[byte] then -- luacheck: ignore 542
        elseif byte == OPEN or byte == OPEN_LIST then
            depth = depth + 1
        elseif byte == CLOSE or byte == CLOSE_LIST then
            depth = depth - 1
            if depth == 0 then
                self.depth, self.is_over = depth, true
                return i + 1
            end
        elseif byte == QUOTE then
            self.depth = depth
            self:begin_string()
            return i + 1
        elseif depth == 1 and byte == COMMA then
            self.key = nil
        elseif depth == 1 and byte == COLON and self.key == "model" then
            self.depth, self.awaits_value = depth, true
            return i + 1
        end
    end
    self.depth = depth
    return #piece + 1
end

--- Find the beginning of the object in a piece; only white space came before it. A body that is no object has no model.
---@return integer at where the piece goes on
function Search:begin(piece)
    local at = piece:find(NOT_BLANK)
    self.has_begun = at ~= nil
    self.is_over = at ~= nil and piece:byte(at) ~= OPEN
    return at or #piece + 1
end

--- See the next piece of a body.
---@param piece string
---@return boolean is_over true: no further piece can change the answer
function Search:see(piece)
    local at = self.has_begun and 1 or self:begin(piece)
    while at <= #piece and not self.is_over do
        if self.is_in_string then
            at = self:pass_string(piece, at)
        elseif self.awaits_value then
            at = self:pass_blank(piece, at)
        else
            at = self:pass_marks(piece, at)
        end
    end
    return self.is_over
end

--- The value of `model` in the outermost object. If there are several, the last one counts, as in JSON libraries. The
-- node reports errors in the JSON.
---@return string|nil name nil: there is none, or the object has no end
function Search:name()
    return self.is_over and self.found or nil
end

return model
