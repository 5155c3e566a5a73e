--- The cells of one value of a prompt: its bytes are cut at fixed distances from its beginning, and each cell has a
-- hash. So the value has the same cells wherever it stands in a body, and wherever the windows of the body begin.
-- A cell has a quarter of the distance of marks there (prompt_marks.lua), but no more than LARGEST bytes: an unfinished
-- cell is kept until the next window.

local prompt_payload = require "vllm_nginx_lb.prompt_payload"

local SMALLEST = 256 -- bytes
local LARGEST = 4096

---@class PromptCells: Reader
---@field hash fun(text: string, first: integer, last: integer): integer of a part of a text
---@field hashes integer[] of the cells
---@field ends integer[] how many bytes of prompt end with each cell
---@field bytes integer of prompt in the cells
---@field size integer of the next cell, in bytes
---@field rest string the unfinished cell
---@field is_payload boolean the unfinished cell does not count as prompt
---@field payload PromptPayload
local PromptCells = {}
PromptCells.__index = PromptCells

local prompt_cells = {}

---@param hash fun(text: string, first: integer, last: integer): integer of a part of a text
---@param has_payloads boolean false: all strings of the value are text
---@return PromptCells
function prompt_cells.new(hash, has_payloads)
    return setmetatable({
        hash = hash,
        hashes = {},
        ends = {},
        bytes = 0,
        size = SMALLEST,
        rest = "",
        is_payload = false,
        payload = prompt_payload.new(has_payloads),
    }, PromptCells)
end

--- Add a cell: a part of a text.
function PromptCells:add_cell(text, first, last)
    local bytes = self.bytes + (self.is_payload and 0 or last - first + 1)
    local count = #self.hashes + 1
    self.hashes[count], self.ends[count], self.bytes = self.hash(text, first, last), bytes, bytes
    while not self.is_payload and self.size < LARGEST and bytes >= 128 * self.size do
        self.size = 2 * self.size
    end
end

--- Cut the unfinished cell here, if it has bytes.
function PromptCells:cut()
    if self.rest ~= "" then
        self:add_cell(self.rest, 1, #self.rest)
        self.rest = ""
    end
end

--- Add bytes of the prompt, or of a payload.
function PromptCells:add(piece, first, last, is_payload)
    if is_payload ~= self.is_payload then
        self:cut()
        self.is_payload = is_payload
    end
    local size = is_payload and LARGEST or self.size
    if self.rest ~= "" then
        local missing = math.min(size - #self.rest, last - first + 1)
        self.rest = self.rest .. piece:sub(first, first + missing - 1)
        first = first + missing
        if #self.rest == size then
            self:cut()
        end
    end
    size = is_payload and LARGEST or self.size
    while last - first + 1 >= size do
        self:add_cell(piece, first, first + size - 1)
        first = first + size
        size = is_payload and LARGEST or self.size
    end
    self.rest = first <= last and piece:sub(first, last) or self.rest
end

function PromptCells:see(piece, first, last)
    self.payload:see(piece, first, last)
    self:add(piece, first, last, false)
end

function PromptCells:see_string(piece, first, last, is_end)
    local counted = self.payload:see_string(piece, first, last, is_end)
    if counted > 0 then
        self:add(piece, first, first + counted - 1, false)
    end
    if first + counted <= last then
        self:add(piece, first + counted, last, true)
    end
end

--- How many bytes of prompt the value has.
---@return integer bytes
function PromptCells:length()
    return self.bytes + (self.is_payload and 0 or #self.rest)
end

return prompt_cells
