--- How an answer with a good status ends: nodes may end it without output, with an error, or break it off.

local outcome = require "vllm_nginx_lb.outcome"
local output = require "vllm_nginx_lb.output"

-- The status of an answer that has no body. A request that computes something has an answer with one.
local NO_CONTENT = 204

local ending = {}

--- Whether an answer that is no event stream is an error.
local function is_error(it)
    return it.head ~= nil and output.is_error(it.content_type, it.head)
end

--- See the next step of an answer: a piece, its end, or a flush. nginx flushes after the headers if no body has come
-- yet, and when the node breaks the answer off. It does not flush when the client leaves.
---@param it Request
---@param is_empty boolean true: there is no piece
---@param is_last boolean true: the answer ends here
function ending.see(it, is_empty, is_last)
    it.is_complete = is_last or nil
    it.flushes = is_empty and not is_last and (it.flushes or -1) + 1 or 0 -- the headers' own is not counted
end

--- The label of an answer that has a good status and is a fault.
---@param it Request at its node
---@param status integer of the answer
---@return string|nil label of outcome.LABELS; nil: the answer is good, or the client has left
function ending.fault(it, status)
    if it.is_light then
        return nil
    elseif status == NO_CONTENT or is_error(it) or it.is_complete and it.stage ~= "body" then
        return outcome.NO_OUTPUT
    elseif it.output and it.output.has_failed or not it.is_complete and (it.flushes or 0) > 0 then
        return outcome.CUT_OFF
    end
    return nil
end

return ending
