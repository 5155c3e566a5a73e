--- Which strings of a prompt are the payload of an image, a sound or a file, in base64: a data URL behind a key that
-- may have one, or the value of a key `data`. Their bytes are no text, and say little about how many tokens they
-- become. Any text may begin as a data URL does. So behind other keys it counts as text.

local HAS_URL = { url = true, image_url = true, audio_url = true, video_url = true, file_data = true }
local BEHIND = 32 -- bytes before a string that are looked at
local BEGINNING = 128 -- bytes of a string that are looked at

---@class PromptPayload
---@field is_possible boolean
---@field before string what came before the string, as far as it is looked at
---@field beginning string the first bytes of the string, up to BEGINNING
---@field seen integer bytes of the string seen
local PromptPayload = {}
PromptPayload.__index = PromptPayload

local prompt_payload = {
    -- So many bytes of a payload count as prompt. Of an image, 96 to 290 bytes of base64 become a token, measured with
    -- several models; 4 KiB of text are about a thousand tokens, like an image of 100 to 300 KiB.
    COUNTED = 4096,
}

--- For the strings of one value.
---@param is_possible boolean false: none of them is a payload
---@return PromptPayload
function prompt_payload.new(is_possible)
    return setmetatable({ is_possible = is_possible, before = "", beginning = "", seen = 0 }, PromptPayload)
end

--- See what stands between two strings, or short strings.
function PromptPayload:see(piece, first, last)
    local length = last - first + 1
    local before = length < BEHIND and self.before or ""
    self.before = (before .. piece:sub(math.max(first, last - BEHIND + 1), last)):sub(-BEHIND)
end

function PromptPayload:is_payload()
    local key = self.is_possible and self.before:match '"([%l_]+)"%s*:%s*"$'
    return key == "data" or HAS_URL[key] and self.beginning:find "^data:[^,]*;base64," ~= nil or false
end

--- See bytes of a long string.
---@param is_end boolean the string ends with them
---@return integer counted so many of them count as prompt, from the first on
function PromptPayload:see_string(piece, first, last, is_end)
    local length = last - first + 1
    if self.seen < BEGINNING then
        self.beginning = self.beginning .. piece:sub(first, math.min(last, first + BEGINNING - self.seen - 1))
    end
    local counted = math.min(length, math.max(0, prompt_payload.COUNTED - self.seen))
    if counted < length and not self:is_payload() then
        counted = length
    end
    self.seen = self.seen + length
    if is_end then -- a short string may be a key that two windows share
        self.before = self.seen <= BEGINNING and (self.before .. self.beginning):sub(-BEHIND) or ""
        self.beginning, self.seen = "", 0
    end
    return counted
end

return prompt_payload
