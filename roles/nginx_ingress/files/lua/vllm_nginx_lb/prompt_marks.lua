--- The prefix marks of a body. A mark is a hash of all text up to its end, as vLLM names the blocks of its cache
-- (https://docs.vllm.ai/en/stable/design/prefix_caching.html). So the next turn of a chat has the marks of the turn
-- before, and a question has the marks of its system prompt.
-- Marks cover the whole body, at distances that grow with it: a MiB has about 112 marks, 64 MiB have about 208.
-- The base64 text of an image or of audio is part of marks, and does not count as bytes of the prompt.

local FIRST_DISTANCE = 1024 -- bytes, up to 16 times as many
local SHARE = 16 -- afterwards the distance is at most this part of what is before it
local PAYLOAD, PAYLOAD_ENDS = ";base64,", '"'

---@class PromptMarks
local PromptMarks = {}
PromptMarks.__index = PromptMarks

local prompt_marks = {}

--- From one mark to the next.
---@param at integer bytes of prompt that end with a mark; 0 before the first one
---@return integer bytes a power of two, >= 1024
function prompt_marks.distance(at)
    local distance = FIRST_DISTANCE
    while 2 * distance * SHARE <= at do
        distance = 2 * distance
    end
    return distance
end

--- Begin to mark a body.
---@param hash fun(text: string): string a text of 16 bytes
---@return PromptMarks
function prompt_marks.new(hash)
    local it = { hash = hash, so_far = "", bytes = 0, next_end = FIRST_DISTANCE, marks = {}, ends = {} }
    it.pieces, it.rest, it.is_payload = {}, "", false
    return setmetatable(it, PromptMarks)
end

--- Hash what was added since.
function PromptMarks:fold()
    self.so_far = self.hash(self.so_far .. table.concat(self.pieces))
    self.pieces = {}
end

--- Add text of the prompt.
function PromptMarks:add(text)
    local from = 1
    while self.bytes + #text - from + 1 >= self.next_end do
        local to = from + self.next_end - self.bytes - 1
        self.pieces[#self.pieces + 1] = text:sub(from, to)
        self:fold()
        self.marks[#self.marks + 1], self.ends[#self.ends + 1] = self.so_far, self.next_end
        self.bytes, from = self.next_end, to + 1
        self.next_end = self.bytes + prompt_marks.distance(self.bytes)
    end
    self.pieces[#self.pieces + 1] = text:sub(from)
    self.bytes = self.bytes + #text - from + 1
end

--- Add the part of a text that begins with the payload of an image, and return the rest.
function PromptMarks:skip_payload(text)
    local ends = text:find(PAYLOAD_ENDS, 1, true)
    self.pieces[#self.pieces + 1] = text:sub(1, ends and ends - 1)
    self:fold()
    self.is_payload = not ends
    return ends and text:sub(ends) or ""
end

--- See the next part of the body.
---@param window string
function PromptMarks:see(window)
    local text = self.rest .. window
    self.rest = ""
    while text ~= "" do
        if self.is_payload then
            text = self:skip_payload(text)
        else
            local _, last = text:find(PAYLOAD, 1, true)
            self.is_payload = last ~= nil
            if not last then -- the next window may go on with the rest of PAYLOAD
                last = math.max(0, #text - #PAYLOAD + 1)
                self.rest = text:sub(last + 1)
            end
            self:add(text:sub(1, last))
            text = self.is_payload and text:sub(last + 1) or ""
        end
    end
end

--- End the body.
---@return string[] marks from the shortest prefix on, of 16 bytes each
---@return integer[] ends how many bytes of the prompt end with each mark
---@return integer bytes of the prompt
function PromptMarks:finish()
    self:add(self.rest)
    self.rest = ""
    return self.marks, self.ends, self.bytes
end

return prompt_marks
