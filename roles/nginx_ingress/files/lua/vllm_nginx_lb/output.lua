--- Find the first output in an answer: until then, the node still computes the prompt. Pure.
--
-- An answer that is no event stream is output from its first byte. An event stream begins with output only sometimes:
-- vLLM sends the headers and, on /v1/responses, the first events at once, and comments while a client waits
-- (--sse-keep-alive-interval). Lines may be cut anywhere between two pieces of an answer.
-- https://html.spec.whatwg.org/multipage/server-sent-events.html

-- Events without output. An error is none either: the node has computed nothing.
local NO_OUTPUT = {
    ["response.created"] = true,
    ["response.queued"] = true,
    ["response.in_progress"] = true,
    message_start = true,
    ping = true,
    error = true,
}
-- Data without output: the end of the stream.
local DONE = "[DONE]"
-- Fields without output. A comment is a line whose field has no name.
local NO_DATA = { [""] = true, id = true, retry = true }
local KEPT = 64 -- bytes of a line that are kept; the kind of the line is in these
local MOST_LINES = 10000 -- a stream with so many lines and no output is taken for one that has begun

--- Whether a JSON text begins as the error of an inference server.
local function begins_with_error(text)
    local value = text:match '^%s*{%s*"error"%s*:%s*(.)'
    return value ~= nil and value ~= "n" or text:find '^%s*{%s*"object"%s*:%s*"error"' ~= nil -- not null
end

---@class Output
---@field line string the first bytes of the line that is not complete
---@field is_judged boolean whether that line was judged already
---@field lines integer so far
---@field is_silent boolean|nil whether the event has a name that stands for no output
local Output = {}
Output.__index = Output

local output = {}

--- Begin to read an answer.
---@param content_type string|nil of its headers
---@return Output|nil nil: it is no event stream, so its first byte is output
function output.of(content_type)
    if type(content_type) == "string" and content_type:lower():find "^text/event%-stream" then
        return setmetatable({ line = "", is_judged = false, lines = 0 }, Output)
    end
    return nil
end

--- Whether an answer that is not streamed is an error, whatever its status is.
---@param content_type string|nil of its headers
---@param piece string its first bytes
---@return boolean
function output.is_error(content_type, piece)
    return type(content_type) == "string"
        and content_type:find("application/json", 1, true) == 1
        and begins_with_error(piece)
end

--- Whether a line, or its first bytes, carries output.
function Output:judge(line)
    local field, value = line:match "^(%l*): ?([^\r]*)"
    if line == "" or line == "\r" then -- the event ends
        self.is_silent = nil
    elseif field == "event" then
        self.is_silent = NO_OUTPUT[value]
    elseif field == "data" then
        return not (self.is_silent or value == DONE or begins_with_error(value))
    else
        return not NO_DATA[field] -- what is no field is the node's own format, or compressed
    end
    return false
end

--- Read a piece of the answer.
---@param piece string
---@return boolean has_begun true: the answer's first output is in this piece, or was before
function Output:read(piece)
    local at = 1
    while at <= #piece do
        local stop = piece:find("\n", at, true)
        local last = stop and stop - 1 or #piece
        local room = KEPT - #self.line
        if room > 0 then
            self.line = self.line .. piece:sub(at, math.min(last, at + room - 1))
        end
        if not self.is_judged and (stop or #self.line == KEPT) then
            self.is_judged = true
            if self:judge(self.line) then
                return true
            end
        end
        if stop then
            self.line, self.is_judged, self.lines = "", false, self.lines + 1
            if self.lines >= MOST_LINES then
                return true
            end
        end
        at = last + 2
    end
    return false
end

return output
