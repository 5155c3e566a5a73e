--- The life of a request, from its acceptance to its end, in one record.
--
--     accepted ─▶ sent ─▶ headers ─▶ body ─▶ ended
--         ▲         │
--         └─────────┘ the try has failed: another node is chosen
--
-- In the stages `sent` and `headers`, the prompt counts as pending work of the node, for as long as pending.lua says.
-- Until the request ends or the try fails, it also counts as a stream of the node. vLLM sends the headers of a stream
-- before it has computed the prompt, and some events too, so the prompt is done with the first output (output.lua).

local answer = require "vllm_nginx_lb.answer"
local least_work = require "vllm_nginx_lb.least_work"
local place = require "vllm_nginx_lb.place"
local request_record = require "vllm_nginx_lb.request_record"
local stall = require "vllm_nginx_lb.stall"

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
    return request_record.new()
end

--- Prepare a request for its first choice, and keep its record.
---@param it Request
---@param bytes number of its body
---@param pool table its nodes
function Requests:begin(it, bytes, pool)
    it.bytes = least_work.prompt_bytes(it, bytes)
    it.tokens_per_byte = self.parts.tokens:per_byte(pool.name or "", it.model)
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
    self.places:release(it, kind == "refusal")
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
        it.stage = "headers"
        answer.begin(it, content_type, encoding)
    end
end

--- See a piece of an answer's body that is not empty.
---@param it Request
---@param piece string
---@param is_good boolean false: it is an error
---@return boolean is_first true: the answer's first output is in this piece, so the prompt is computed
function Requests:see_piece(it, piece, is_good)
    if not answer.see(it, piece, is_good) or it.stage ~= "sent" and it.stage ~= "headers" then
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
