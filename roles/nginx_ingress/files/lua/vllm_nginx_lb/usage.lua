--- How many tokens the prompt and the answer had, as a node says in the `usage` of its answer. Pure.
--
-- An answer that is not streamed has it near its end. A stream has it in its last events, or in all, if the client asks
-- for it (`stream_options`), and on /v1/responses and /v1/messages in any case. The newest one counts.
-- A quote inside a JSON string is escaped, so `"usage":` is a key, never generated text. But clients choose keys too:
-- /v1/responses repeats `tools`, /v1/messages shows a tool's input as an object. So only the last `usage` of a complete
-- answer is believed (answer.lua). An answer has no more tokens than bytes. The text may be cut anywhere between two
-- pieces.

local KEY = '"usage":'
local LONGEST = 512 -- bytes of the object, with the white space before it; vLLM's have 60 to 270
local MOST = 2 ^ 24 -- tokens: more are nonsense

--- The pattern of a number in the object: whole, and not below 0.
local function pattern(name)
    return '"' .. name .. '"%s*:%s*(%d+)%s*[,}]'
end

local PROMPT, COMPLETION = pattern "prompt_tokens", pattern "completion_tokens"
local INPUT, OUTPUT = pattern "input_tokens", pattern "output_tokens"
-- On /v1/messages, what was cached is not a part of `input_tokens`.
local CACHED, CREATED = pattern "cache_read_input_tokens", pattern "cache_creation_input_tokens"

---@class Usage
---@field rest string the last bytes, where a key or its object may have begun
---@field seen integer bytes of the answer
---@field prompt_tokens integer|nil from 1 to 2^24; nil: not known so far
---@field output_tokens integer at most as many as bytes were seen; 0: not known so far
local Usage = {}
Usage.__index = Usage

local usage = {}

--- Begin to read an answer.
---@param encoding string|nil the Content-Encoding of its headers
---@return Usage|nil nil: it cannot be read
function usage.of(encoding)
    if encoding and encoding ~= "identity" then
        return nil
    end
    return setmetatable({ rest = "", seen = 0, output_tokens = 0 }, Usage)
end

--- A number of an object; nil if there is none that can be.
local function count(object, wanted)
    local number = tonumber(object:match(wanted))
    return number and number <= MOST and number or nil
end

--- Read the object.
function Usage:take(object)
    local prompt, input = count(object, PROMPT), count(object, INPUT)
    if not prompt and input then
        prompt = input + (count(object, CACHED) or 0) + (count(object, CREATED) or 0)
    end
    if prompt and prompt > 0 and prompt <= MOST then
        self.prompt_tokens = prompt
    end
    local output = count(object, COMPLETION) or count(object, OUTPUT)
    self.output_tokens = output and math.min(output, self.seen) or self.output_tokens
end

--- Read what comes after a key.
---@param text string
---@param from integer its first byte
---@return integer|nil from where the text goes on; nil: not in this piece
function Usage:take_value(text, from)
    local is_long = #text - from + 1 >= LONGEST
    if not text:find("^%s*{", from) then
        return (is_long or not text:find("^%s*$", from)) and from or nil
    end
    local object = text:sub(from, from + LONGEST - 1):match "^%s*%b{}"
    if object then
        self:take(object)
        return from + #object
    end
    return is_long and from + LONGEST or nil
end

--- See the next piece. Most pieces of a stream are a token, so they cost one plain search.
---@param piece string
function Usage:see(piece)
    local text = self.rest .. piece
    self.seen = self.seen + #piece
    local key, last = text:find(KEY, 1, true)
    while key do
        local from = self:take_value(text, last + 1)
        if not from then
            self.rest = text:sub(key)
            return
        end
        key, last = text:find(KEY, from, true)
    end
    self.rest = text:sub(1 - #KEY)
end

return usage
