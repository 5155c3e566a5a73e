--- The prefix marks of a request: of its prompt, not of the envelope around it (`model`, `max_tokens`, `stream`, …).
-- A mark is a hash of the prompt from its beginning up to a place, as vLLM names the blocks of its cache
-- (https://docs.vllm.ai/en/stable/design/prefix_caching.html). So the next turn of a chat has the marks of the turn
-- before, and a question has the marks of its system prompt.
-- The prompt is the values of some keys in a fixed order, whatever their order in the body. Each value is cut into
-- cells while it passes (prompt_cells.lua). In the end the hashes of the cells are chained in the fixed order.
-- A cell's hash has 32 bits. Where two cells happen to have the same one, a match is longer by the distance of a mark.

local prompt_cells = require "vllm_nginx_lb.prompt_cells"

-- The keys of vLLM's APIs for OpenAI's and Anthropic's clients, about in the order in which chat templates show them.
-- A salt divides vLLM's cache, so it comes first.
local KEYS = {
    "cache_salt",
    "tools",
    "system",
    "instructions",
    "query",
    "queries",
    "text_1",
    "documents",
    "messages",
    "input",
    "prompt",
    "prompt_embeds",
    "text_2",
}
-- Those whose strings are text, whatever they look like.
local IS_TEXT = { tools = true, instructions = true, prompt = true }

local FIRST_DISTANCE = 1024 -- bytes
local GROWTH = 16 -- the distance is between a 32nd and a 16th of the way to the mark

---@class PromptHashes
---@field mark fun(text: string): string of 16 bytes
---@field part fun(text: string, first: integer, last: integer): integer of a part of a text

---@class PromptMarks: Reader of the keys of a prompt
---@field hashes PromptHashes
---@field values table<string, PromptCells> by key
---@field present PromptCells of the key that came last
local PromptMarks = {}
PromptMarks.__index = PromptMarks

local prompt_marks = {}

--- How far the next mark is from a mark.
---@param at integer bytes of prompt before the mark
---@return integer bytes
function prompt_marks.distance(at)
    local distance = FIRST_DISTANCE
    while at >= 2 * GROWTH * distance do
        distance = 2 * distance
    end
    return distance
end

--- For the body of one request.
---@param hashes PromptHashes
---@return PromptMarks
function prompt_marks.new(hashes)
    return setmetatable({ hashes = hashes, values = {} }, PromptMarks)
end

--- Add itself to the readers of a walk.
---@param readers table<string, Reader> by key (json_walk.lua)
function PromptMarks:join(readers)
    for _, key in ipairs(KEYS) do
        readers[key] = self
    end
end

function PromptMarks:begin(key)
    self.present = prompt_cells.new(self.hashes.part, not IS_TEXT[key])
    self.values[key] = self.present
end

function PromptMarks:see(piece, first, last)
    self.present:see(piece, first, last)
end

function PromptMarks:see_string(piece, first, last, is_end)
    self.present:see_string(piece, first, last, is_end)
end

--- The keys that have a value, in the fixed order.
function PromptMarks:keys()
    local found = {}
    for _, key in ipairs(KEYS) do
        if self.values[key] and self.values[key]:length() > 0 then
            found[#found + 1] = key
        end
    end
    return found
end

--- The marks of the prompt that has been seen. Its end has no mark of its own: the next turn goes on there.
---@return string[] marks of 16 bytes each
---@return integer[] ends how many bytes of prompt end with each mark
---@return integer|nil bytes of prompt; nil: the body has no prompt that this room knows
function PromptMarks:finish()
    local marks, ends, before, keys = {}, {}, 0, self:keys()
    local chain, links, reached = "", {}, 0
    for index, key in ipairs(keys) do
        local value = self.values[key]
        if index < #keys then
            value:cut()
        end
        links[#links + 1] = key
        for i, hash in ipairs(value.hashes) do
            local at = before + value.ends[i]
            links[#links + 1] = hash
            if at - reached >= prompt_marks.distance(reached) then
                chain = self.hashes.mark(chain .. table.concat(links, " "))
                marks[#marks + 1], ends[#ends + 1] = chain, at
                links, reached = {}, at
            end
        end
        before = before + value:length()
    end
    return marks, ends, keys[1] and before or nil
end

return prompt_marks
