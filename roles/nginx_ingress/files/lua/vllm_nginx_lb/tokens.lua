--- How many tokens a prompt has. The rate is learned for each pool and model from the `usage` of answers (usage.lua),
-- and all workers share it. It depends on the tokenizer, the language and the escapes: a token of English or code has
-- 3.6 to 3.9 bytes, of JSON 2.4, of Russian 7.4, or 21 where it is written as `\uXXXX`.
-- The rate is a mean over the last prompts, by bytes. No answer moves it by more than a 64th of the way. A client can
-- write into a body what looks like a prompt, and what vLLM ignores. So each client teaches one prompt in some seconds.

local RATE = "tokens per byte:" -- in the dictionary, of a pool and a model
local KEPT_SECONDS = 7 * 24 * 3600 -- without a sample, as the pool or the model may be gone
local MEMORY = 2 ^ 20 -- after so many bytes of prompts, a former rate counts by 1/e
local MOST_BYTES = MEMORY / 64 -- that one prompt counts
local LEAST, MOST = 1 / 32, 1 -- tokens per byte
local TAUGHT = "taught " -- in the dictionary of clients, of a client that has taught a prompt lately
local LATELY = 5 -- seconds

---@class Tokens
local Tokens = {}
Tokens.__index = Tokens

local tokens = {
    PER_BYTE = 1 / 4, -- of a prompt, as long as nothing is learned
    KV_TOKENS = 131072, -- of a node's KV cache, as long as its size is unknown
}

--- Keep the rates in a dictionary.
---@param dict SharedDict
---@param clients SharedDict which clients have taught lately; it may forget
---@return Tokens
function tokens.new(dict, clients)
    return setmetatable({ dict = dict, clients = clients }, Tokens)
end

--- The key of a rate. The names of pools have no colon. The number of keys is bounded: by weights.json.
local function key_of(pool, model)
    return RATE .. pool .. ":" .. (model or "")
end

--- The rate of a pool and a model.
---@param pool string its name
---@param model string|nil one that the pool names; nil: it names none, or nginx has found the pool itself
---@return number tokens_per_byte from 1/32 to 1
function Tokens:per_byte(pool, model)
    return self.dict:get(key_of(pool, model)) or tokens.PER_BYTE
end

--- Learn from a prompt, unless its client has taught another one lately. Two workers that learn at once may lose a
-- sample.
---@param client string who sent it
---@param pool string see Tokens:per_byte
---@param model string|nil see Tokens:per_byte
---@param bytes number of the prompt, > 0
---@param count integer how many tokens the node says that it has
function Tokens:learn(client, pool, model, bytes, count)
    if not self.clients:add(TAUGHT .. client, true, LATELY) then
        return
    end
    local rate, seen = self:per_byte(pool, model), math.max(LEAST, math.min(MOST, count / bytes))
    rate = rate + math.min(bytes, MOST_BYTES) / MEMORY * (seen - rate)
    self.dict:set(key_of(pool, model), rate, KEPT_SECONDS)
end

--- What is learned.
---@param pools table by name
---@param models table<string, string> the pool of each model
---@return table[] rows `pool`, `model` ("" for requests without one), and `bytes_per_token`
function Tokens:rows(pools, models)
    local rows = {}
    local function add(pool, model)
        local rate = self.dict:get(key_of(pool, model))
        rows[#rows + 1] = rate and { pool = pool, model = model, bytes_per_token = 1 / rate }
    end
    for pool in pairs(pools) do
        add(pool, "")
    end
    for model, pool in pairs(models) do
        add(pool, model)
    end
    return rows
end

return tokens
