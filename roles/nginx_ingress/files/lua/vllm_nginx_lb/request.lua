--- The life of a request, from its acceptance to its end, in one record.
--
--     accepted ─▶ sent ─▶ headers ─▶ body ─▶ ended
--         ▲         │
--         └─────────┘ the try has failed: another node is chosen
--
-- In the stages `sent` and `headers`, the prompt counts as pending work of the node, for as long as pending.lua says.
-- Until the request ends or the try fails, it also counts as a stream of the node. vLLM sends the headers of a stream
-- before it has computed the prompt, and some events too, so the prompt is done with the first output (output.lua).

local least_work = require "vllm_nginx_lb.least_work"
local output = require "vllm_nginx_lb.output"
local place = require "vllm_nginx_lb.place"
local stall = require "vllm_nginx_lb.stall"

---@class Request
---@field stage string accepted, sent, headers, body (its first output has come), ended
---@field number integer|nil of this worker, from its first choice on; in $vllm_nginx_lb_request
---@field pool_name string|nil the pool of its model; nil: the pool that nginx has found
---@field origin integer|nil what ties it to a node: its session's place on the ring, or a number of its first mark
---@field body RequestBody|nil
---@field client string|nil who sent it, where prefixes have marks
---@field marks string[]|nil the prefix marks of its prompt, with `mark_ends` and `prompt_bytes` (prompt_marks.lua)
---@field bytes number that its prompt counts
---@field cached table<string, number> bytes of its prompt that nodes are likely to have cached, by address
---@field tried table<string, boolean> addresses of the nodes that it was sent to
---@field is_tried_again boolean|nil true: it was sent to each node, and one of them gets it once more
---@field is_light boolean|nil true: it computes nothing, so its answer says nothing about the engine
---@field is_trial boolean|nil true: it shows whether the node that it is at, which has been ejected, is well
---@field tries integer how often it was sent to a node
---@field broken table|nil the first node whose connection has broken: `peer`, `ejected_at` if it was ejected for that
---@field pool table|nil the pool of the node that it is at now, with its `name` and `nodes`
---@field peer string|nil the address of the node that it is at now
---@field cost number bytes of its prompt that the node has to compute
---@field pending number bytes of its prompt that count as pending work of that node
---@field ahead number bytes that were pending there when it was sent, its own included
---@field predicted number seconds from then until its first output, as prefill.lua predicted
---@field due_slot integer|nil when its prompt is computed, probably (pending.lua)
---@field output Output|nil reads its answer; nil: its answer is no event stream, or has no headers yet
---@field content_type string|nil of its answer
---@field head string|nil the first bytes of an answer that is no event stream
---@field is_complete boolean|nil true: the node has ended the answer
---@field flushes integer|nil how often nginx has sent on what it has since a piece or the headers (ending.lua)
---@field sent_at number seconds of clock.lua

---@class Requests the requests of one worker
local Requests = {}
Requests.__index = Requests

local request = {}

---@class RequestParts: PlaceParts see place.lua for its fields
---@field settings table `tries`, `stall_seconds`
---@field pending Pending
---@field prefill Prefill
---@field ejection Ejection
---@field counts NodeCounts
---@field outlier Outlier
---@field verdicts Verdicts
---@field affinity Affinity
---@field peers table `set_current_peer` and `set_more_tries`, as of ngx.balancer
---@field now fun(): number seconds of clock.lua

--- Follow the requests of one worker.
-- An nginx variable has the number of each request. Unlike ngx.ctx, the variable survives the internal redirect to an
-- error page, after which the request's work still has to be released.
---@param parts RequestParts
---@return Requests
function request.follow(parts)
    return setmetatable({ parts = parts, places = place.new(parts), by_number = {}, latest = 0 }, Requests)
end

--- Begin the record of a request. Until the request is sent to a node, only the caller keeps the record.
---@return Request
function Requests.accept()
    return { stage = "accepted", tried = {} }
end

--- Prepare a request for its first choice, and keep its record.
---@param it Request
---@param bytes number of its body
---@param pool table its nodes
function Requests:begin(it, bytes, pool)
    it.bytes = least_work.prompt_bytes(it, bytes)
    it.cached = self.parts.affinity:cached(it, pool)
    it.tries = 0
    self.latest = self.latest + 1
    it.number = self.latest
    self.by_number[it.number] = it
end

--- The record of a request that has begun and has not ended.
---@param number integer|nil of the request
---@return Request|nil
function Requests:under_way(number)
    return number and self.by_number[number]
end

--- Let nginx try a request once more if another node is left. If none is, the client gets the answer of this try. After
-- a kept connection that breaks, nginx asks for a node in any case.
function Requests:allow_another_try(it, pool)
    local parts = self.parts
    if it.tries < parts.settings.tries and parts.choice:has_untried(it, pool, parts.in_flight:totals()) then
        parts.peers.set_more_tries(1)
    end
end

--- End a try that has failed.
---@return boolean may_go_on false: no other node may get the request
function Requests:leave_node(it, try)
    local kind = self.parts.verdicts:judge(it, try)
    self.places:release(it)
    return kind ~= "timed_out" -- the node may still work on it
end

--- Send a request to a node. If the request is at a node already, that try has failed. nginx asks for another node
-- after each kept connection that breaks, whatever it was told before, so the tries are counted here.
---@param it Request which has begun
---@param pool table with its present nodes
---@param try Try|nil what became of the former try; nil: this is the first one
---@return string|nil why the node was chosen, as $vllm_nginx_lb_choice has it; nil if there is none
function Requests:send(it, pool, try)
    local parts = self.parts
    if it.peer and not self:leave_node(it, try) or it.tries >= parts.settings.tries then
        return nil
    end
    parts.pending:finish_due(parts.now())
    local node, why = self.places:take(it, pool)
    if not node then
        return nil
    end
    it.tries, it.pool = it.tries + 1, pool
    self:allow_another_try(it, pool)
    it.stage, it.sent_at = "sent", parts.now()
    it.predicted = parts.prefill:seconds(node.peer, it.ahead)
    parts.pending:expect(it, it.sent_at)
    it.is_trial = not it.is_light and parts.ejection:chosen(node.peer)
    parts.affinity:note(it, node)
    parts.counts:chosen(node.peer)
    return why
end

--- See the headers of an answer.
---@param it Request
---@param content_type string|nil of the answer
---@param encoding string|nil its Content-Encoding
function Requests.see_headers(_, it, content_type, encoding)
    if it.stage == "sent" then
        it.stage, it.output, it.content_type = "headers", output.of(content_type, encoding), content_type
    end
end

--- Whether there is output in an answer, as of its next piece.
local function has_output(it, piece)
    if it.output then
        return it.output:read(piece)
    end
    it.head = output.head(it.head, piece)
    return true
end

--- See a piece of an answer's body that is not empty.
---@param it Request
---@param piece string
---@param is_good boolean false: it is an error
---@return boolean is_first true: the answer's first output is in this piece, so the prompt is computed
function Requests:see_piece(it, piece, is_good)
    if not has_output(it, piece) or it.stage ~= "sent" and it.stage ~= "headers" then
        return false
    end
    it.stage = "body"
    self.parts.pending:finish(it)
    if is_good and it.output and not it.is_light then
        self.parts.verdicts:begun(it)
    end
    return true
end

--- Close a request's record and release its work, however the request ended.
---@param number integer|nil of the request
---@param try Try what became of the last try
function Requests:finish(number, try)
    local it = self:under_way(number)
    if not it then
        return
    end
    self.by_number[number] = nil
    if it.peer then
        self:leave_node(it, try)
    end
    it.stage = "ended"
end

--- Eject the nodes that have stalled.
function Requests:eject_stalled()
    stall.eject(self.by_number, self.parts)
end

return request
