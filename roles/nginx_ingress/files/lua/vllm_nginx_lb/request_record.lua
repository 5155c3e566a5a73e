--- What is known of one request.

---@class Request
---@field stage string accepted, sent, headers, body (its first output has come), ended
---@field number integer|nil of this worker, from its first choice on; in $vllm_nginx_lb_request
---@field pool_name string|nil the pool of its model; nil: the pool that nginx has found
---@field model string|nil that it asks for, if the pool was found by it
---@field origin integer|nil what ties it to a node: its session's place on the ring, or a number of its first mark
---@field body RequestBody|nil
---@field client string|nil who sent it, where prefixes have marks
---@field marks string[]|nil the prefix marks of its prompt, with `mark_ends` and `prompt_bytes` (prompt_marks.lua)
---@field bytes number that its prompt counts
---@field tokens_per_byte number of its prompt, about (tokens.lua)
---@field cached table<string, number> bytes of its prompt that nodes are likely to have cached, by address
---@field tried table<string, boolean> addresses of the nodes that it was sent to
---@field is_tried_again boolean|nil true: it was sent to each node, and one of them gets it once more
---@field is_light boolean|nil true: it computes nothing, so its answer says nothing about the engine
---@field is_trial boolean|nil true: it shows whether the node that it is at, which has been ejected, is well
---@field tries integer how often it was sent to a node
---@field broken table|nil the first node whose connection has broken: `peer`, `ejected_at` if it was ejected for that
---@field pool table|nil the pool of the node that it is at now, with its `name` and `nodes`
---@field peer string|nil the address of the node that it is at now
---@field node table|nil that node, as it was in the list then
---@field cost number bytes of its prompt that the node has to compute
---@field cost_tokens integer tokens of its prompt that the node has to compute, about
---@field pending number bytes of its prompt that count as pending work of that node
---@field ahead number bytes that were pending there when it was sent, its own included
---@field long_prompt LongPrompt|nil its record in progress.lua, if its prompt is long
---@field predicted number seconds from then until its first output, as prefill.lua predicted
---@field due_slot integer|nil the slot of pending.lua in which its prompt is probably computed
---@field output Output|nil reads its answer; nil: its answer is no event stream, or has no headers yet
---@field usage Usage|nil what its answer says of tokens; nil: it cannot be read, or has no headers yet
---@field content_type string|nil of its answer
---@field head string|nil the first bytes of an answer that is no event stream
---@field is_complete boolean|nil true: the node has ended the answer
---@field flushes integer|nil how often nginx has sent on what it has since a piece or the headers (ending.lua)
---@field sent_at number seconds of clock.lua

local request_record = {}

--- Begin the record of a request.
---@return Request
function request_record.new()
    return { stage = "accepted", tried = {} }
end

return request_record
