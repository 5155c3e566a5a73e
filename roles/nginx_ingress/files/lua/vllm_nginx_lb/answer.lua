--- What is seen of an answer while it passes: its first output, its first bytes, and what it says of tokens.

local output = require "vllm_nginx_lb.output"
local usage = require "vllm_nginx_lb.usage"

local answer = {}

--- Begin with the headers of an answer.
---@param it Request
---@param content_type string|nil of the answer
---@param encoding string|nil its Content-Encoding
function answer.begin(it, content_type, encoding)
    it.content_type = content_type
    it.output, it.usage = output.of(content_type, encoding), usage.of(encoding)
end

--- See the next piece.
---@param it Request
---@param piece string not empty
---@param is_good boolean false: the answer is an error
---@return boolean has_output there is output in this piece, or was before
function answer.see(it, piece, is_good)
    if is_good and it.usage then
        it.usage:see(piece)
    end
    if it.output then
        return it.output:read(piece)
    end
    it.head = output.head(it.head, piece)
    return true
end

--- What the answer says of tokens. Before its end, it may be a client's own text (usage.lua).
local function believed(it)
    return it.is_complete and it.usage or nil
end

--- How many tokens the answer has. One that is not streamed counts none before its end, or if it does not say it.
---@param it Request
---@return integer tokens
function answer.tokens(it)
    local said = believed(it)
    return math.max(it.output and it.output.events or 0, said and said.output_tokens or 0)
end

--- How many tokens the answer says that the prompt has.
---@param it Request
---@return integer|nil tokens nil: unknown, or the answer is not complete
function answer.prompt_tokens(it)
    local said = believed(it)
    return said and said.prompt_tokens
end

--- Forget the answer.
---@param it Request
function answer.forget(it)
    it.output, it.usage, it.content_type, it.head, it.is_complete, it.flushes = nil, nil, nil, nil, nil, nil
end

return answer
