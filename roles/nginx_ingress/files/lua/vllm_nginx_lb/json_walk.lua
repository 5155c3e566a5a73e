--- A walk through the outermost object of a JSON text, without parsing it: a body may have megabytes of images.
-- The walk sees the text in pieces, and keeps a few hundred bytes of it, however long it is. It shows the values of
-- some keys to readers. Each reader gets the bytes of a value as they are in the text, escapes and inner white space
-- included. Numbers, `true`, `false` and `null` are not shown.
-- Errors in the JSON are for the node to report. Here they lead to any values, but never to an error.

local cjson = require "cjson.safe"
local json_string = require "vllm_nginx_lb.json_string"

local QUOTE, COMMA, OPEN, OPEN_LIST, CLOSE, CLOSE_LIST = ('",{[}]'):byte(1, -1)
local LONGEST_KEY = 256 -- of a key, in characters
local LONGEST_ESCAPED = 6 * LONGEST_KEY
local NOT_BLANK = "[^%s\239\187\191]" -- neither white space nor a byte order mark

---@class Reader
---@field begin fun(self, key: string) a member of the object begins; if the key comes again, its last value counts
---@field see fun(self, piece: string, first: integer, last: integer) bytes of its value: first <= last
---@field see_string fun(self, piece: string, first: integer, last: integer, is_end: boolean) bytes of a long string in
--- its value, without quotes; last may be first - 1. True: the string ends here.

---@class Walk
---@field readers table<string, Reader> by key
---@field has_begun boolean the object has begun
---@field is_object boolean what has begun is an object
---@field is_over boolean the object has ended, or there is none: no further piece matters
---@field depth integer how many objects and lists are open
---@field key string|nil of the present member; nil: a key comes next
---@field reader Reader|nil of that member
---@field from integer|nil where the part of a value begins that its reader has not seen; nil: outside of such a value
---@field is_in_string boolean
---@field is_escaped boolean an odd number of backslashes came last, in a string
---@field is_apart boolean the reader has seen the beginning of the present string by see_string
---@field kept string[] the pieces of the present key
---@field kept_bytes integer
local Walk = {}
Walk.__index = Walk

local json_walk = { LONG = 4096 } -- bytes of a string that is shown by itself; so is one that goes on in the next piece

--- A walk that has seen nothing.
---@param readers table<string, Reader> by key; one reader may read several keys
---@return Walk
function json_walk.new(readers)
    return setmetatable({
        readers = readers,
        has_begun = false,
        is_object = false,
        is_over = false,
        depth = 0,
        is_in_string = false,
        is_escaped = false,
        is_apart = false,
    }, Walk)
end

--- Keep a part of a key, unless it is too long to be wanted.
function Walk:keep(piece, first, last)
    self.kept_bytes = self.kept_bytes + last - first + 1
    if self.kept_bytes <= LONGEST_ESCAPED then
        self.kept[#self.kept + 1] = piece:sub(first, last)
    end
end

--- Begin a member of the object: its key has ended.
function Walk:begin_member()
    local key = self.kept_bytes <= LONGEST_ESCAPED and table.concat(self.kept) or ""
    if key:find("\\", 1, true) then
        key = cjson.decode('"' .. key .. '"') or ""
    end
    self.key, self.reader = key, self.readers[key]
    if self.reader then
        self.reader:begin(key)
    end
end

--- Show the part of a value up to `last` that its reader has not seen.
function Walk:show(piece, last)
    if self.from and self.from <= last then
        self.reader:see(piece, self.from, last)
        self.from = last + 1
    end
end

--- Show a string by itself if it is long, or goes on in the next piece.
function Walk:show_string(piece, first, last, is_end)
    if self.is_apart or not is_end or last - first >= json_walk.LONG then
        self:show(piece, first - 1)
        self.reader:see_string(piece, first, last, is_end)
        self.from, self.is_apart = last + 1, not is_end
    end
end

--- Pass a string, or the part of it that is in this piece.
---@param at integer its first byte
---@param close integer|nil the quote that ends it; nil: it goes on in the next piece
---@return integer at where the piece goes on
function Walk:pass_string(piece, at, close)
    local last = (close or #piece + 1) - 1
    local is_key = self.depth == 1 and not self.key
    if is_key then
        self:keep(piece, at, last)
    elseif self.from then
        self:show_string(piece, at, last, close ~= nil)
    end
    self.is_in_string = not close
    if close and is_key then
        self:begin_member()
    elseif close and self.depth == 1 then
        self:end_value(piece, close)
    end
    return last + 2
end

--- The value of a member ends.
function Walk:end_value(piece, last)
    self:show(piece, last)
    self.from = nil
end

--- Pass what is between strings, in one loop, which LuaJIT compiles: a body may be 60 MB of brackets.
---@return integer|nil quote where the next string begins; nil: not in this piece
function Walk:find_string(piece, at)
    local depth = self.depth
    for i = at, #piece do
        local byte = piece:byte(i)
        if byte == QUOTE then
            self.depth = depth
            return i
        elseif byte == OPEN or byte == OPEN_LIST then
            depth = depth + 1
            if depth == 2 then
                self.from = self.reader and i
            end
        elseif byte == CLOSE or byte == CLOSE_LIST then
            depth = depth - 1
            if depth == 1 then
                self:end_value(piece, i)
            elseif depth == 0 then
                self.depth, self.is_over = depth, true
                return nil
            end
        elseif depth == 1 and byte == COMMA then
            self.key, self.reader = nil, nil
        end
    end
    self.depth = depth
    return nil
end

--- Begin a string.
function Walk:begin_string(quote)
    if self.depth == 1 and not self.key then
        self.kept, self.kept_bytes = {}, 0
    elseif self.depth == 1 then
        self.from = self.reader and quote
    end
end

--- Find the beginning of the object in a piece; only white space came before it.
---@return integer at where the piece goes on
function Walk:begin(piece)
    local at = piece:find(NOT_BLANK)
    self.has_begun = at ~= nil
    self.is_object = at ~= nil and piece:byte(at) == OPEN
    self.is_over = at ~= nil and not self.is_object
    return at or #piece + 1
end

--- See the next piece of a text.
---@param piece string
---@return boolean is_over true: no further piece matters
function Walk:see(piece)
    local at, is_escaped = self.has_begun and 1 or self:begin(piece), self.is_escaped
    while at <= #piece and not self.is_over do
        if not self.is_in_string then
            local quote = self:find_string(piece, at)
            if not quote then
                break
            end
            self:begin_string(quote)
            at, is_escaped = quote + 1, false
        end
        local close, is_odd = json_string.find_end(piece, at, is_escaped)
        at, is_escaped = self:pass_string(piece, at, close), is_odd
    end
    self.is_escaped = is_escaped
    if self.from then
        self:show(piece, #piece)
        self.from = 1
    end
    return self.is_over
end

--- Whether the text was an object, and has ended.
---@return boolean
function Walk:is_whole()
    return self.is_object and self.is_over
end

return json_walk
