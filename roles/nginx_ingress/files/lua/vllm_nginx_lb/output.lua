--- Find the first output in an answer: until then, the node still computes the prompt. Find errors in an event stream,
-- after its first output too. Pure.
--
-- An answer that is no event stream is output from its first byte. An event stream begins with output only sometimes:
-- vLLM sends the headers and, on /v1/responses, the first events at once, and comments while a client waits
-- (--sse-keep-alive-interval). An engine that dies in the middle of a stream ends it with an error. Lines end in LF,
-- CR LF or CR, and may be cut anywhere between two pieces of an answer.
-- https://html.spec.whatwg.org/multipage/server-sent-events.html

-- Events without output. An error is none either: the node has computed nothing.
local NO_OUTPUT = {
    ["response.created"] = true,
    ["response.queued"] = true,
    ["response.in_progress"] = true,
    message_start = true,
    ping = true,
}
-- Events that are errors.
local IS_ERROR = { error = true, ["response.failed"] = true }
-- Data without output: none, and the end of the stream.
local NO_TEXT = { [""] = true, ["[DONE]"] = true }
-- Fields without output. A comment is a line whose field has no name.
local NO_DATA = { [""] = true, id = true, retry = true }
local KEPT = 64 -- bytes of a line that are kept; the kind of the line is in these
local MOST_LINES = 10000 -- a stream with so many lines and no output is taken for one that has begun
local MOST_LINES_OF_PIECE = 1000 -- after the first output, the further lines of a piece are not looked at
local CR, LF, D = 13, 10, ("d"):byte()

--- Whether a JSON text begins as the error of an inference server.
local function begins_with_error(text)
    local key, value = text:match '^%s*{%s*"(%l+)"%s*:%s*(.*)'
    if key == "error" then
        return not value:find "^n" -- null
    end
    return (key == "object" or key == "type") and value:find '^"error"' ~= nil
end

--- Whether a text begins as no answer of an inference server: as an empty object, or an error of a web framework.
local function is_of_others(text)
    local key = text:match '^%s*{%s*"(%l+)"%s*:'
    return key == "detail" or key == "message" or text:find "^%s*{%s*}" ~= nil
end

---@class Output
---@field line string the first bytes of the line that is not complete
---@field is_judged boolean whether that line was judged already
---@field lines integer so far; after the first output, of the present piece
---@field is_silent boolean|nil whether the event has a name that stands for no output
---@field ended_in_cr boolean whether the last piece ended in a CR; an LF that follows belongs to it
---@field has_begun boolean whether there was output
---@field events integer with data, so far; a node sends one for each token, or for a few
---@field has_failed boolean whether there was an error
local Output = {}
Output.__index = Output

local output = {}

--- Begin to read an answer.
---@param content_type string|nil of its headers
---@param encoding string|nil the Content-Encoding of its headers
---@return Output|nil nil: it is no event stream, or one that cannot be read, so its first byte is output
function output.of(content_type, encoding)
    if type(content_type) ~= "string" or not content_type:lower():find "^text/event%-stream" then
        return nil
    elseif encoding and encoding ~= "identity" then
        return nil
    end
    local it = { line = "", is_judged = false, lines = 0, ended_in_cr = false, events = 0 }
    it.has_begun, it.has_failed = false, false
    return setmetatable(it, Output)
end

--- The first bytes of an answer, with the next piece.
---@param head string|nil the first bytes so far
---@param piece string
---@return string head at most 64 bytes
function output.head(head, piece)
    if head and #head == KEPT then
        return head
    end
    return ((head or "") .. piece):sub(1, KEPT)
end

--- Whether an answer that is not streamed is an error, whatever its status is. A page is one, too.
---@param content_type string|nil of its headers
---@param head string its first bytes
---@return boolean
function output.is_error(content_type, head)
    local is_page = type(content_type) == "string" and content_type:find "^text/html" ~= nil
    return is_page or begins_with_error(head) or is_of_others(head)
end

--- See what a line, or its first bytes, says.
function Output:judge(line)
    if line:byte() == D then
        self.events = self.events + 1
    end
    if self.has_begun and not line:find("error", 1, true) and not line:find("event", 1, true) then
        return -- the most lines by far
    end
    local field, value = line:match "^(%l*): ?(.*)"
    if line == "" then -- the event ends
        self.is_silent = nil
    elseif field == "event" then
        self.is_silent = NO_OUTPUT[value] or IS_ERROR[value]
        self.has_failed = self.has_failed or IS_ERROR[value] == true
    elseif field == "data" then
        local is_error = begins_with_error(value)
        self.has_failed = self.has_failed or is_error
        self.has_begun = self.has_begun or not (self.is_silent or NO_TEXT[value] or is_error)
    elseif not NO_DATA[field] then
        self.has_begun = true -- what is no field is the node's own format
    end
end

--- A piece with LF at the end of each line.
function Output:with_lf(piece)
    if self.ended_in_cr and piece:byte() == LF then
        piece = piece:sub(2)
    end
    self.ended_in_cr = piece:byte(-1) == CR
    return piece:find("\r", 1, true) and piece:gsub("\r\n?", "\n") or piece
end

--- Whether no further line is looked at now.
function Output:has_enough()
    return self.lines >= (self.has_begun and MOST_LINES_OF_PIECE or MOST_LINES)
end

--- Read a piece of the answer.
---@param piece string not empty
---@return boolean has_begun true: the answer's first output is in this piece, or was before
function Output:read(piece)
    local at = 1
    piece = self:with_lf(piece)
    while at <= #piece do
        local stop = piece:find("\n", at, true)
        local last = stop and stop - 1 or #piece
        local room = KEPT - #self.line
        if room > 0 then
            self.line = self.line .. piece:sub(at, math.min(last, at + room - 1))
        end
        if not self.is_judged and (stop or #self.line == KEPT) then
            self.is_judged = true
            self:judge(self.line)
        end
        if stop then
            self.line, self.is_judged, self.lines = "", false, self.lines + 1
        end
        at = last + 2
        if self:has_enough() then
            self.has_begun, self.is_judged = true, true -- until the next line
            break
        end
    end
    self.lines = self.has_begun and 0 or self.lines
    return self.has_begun
end

return output
