--- The life of a request, from its acceptance to its end, in one record.
--
--     accepted ─▶ sent ─▶ headers ─▶ body ─▶ ended
--         ▲         │
--         └─────────┘ the try has failed: another node is chosen
--
-- In the stages `sent` and `headers`, the prompt counts as pending work of the node. Until the request ends or the try
-- fails, it also counts as a stream of the node. vLLM sends the headers of a stream before it has computed the prompt,
-- so the prompt is done with the first byte of the body.

local ejection = require "vllm_nginx_lb.ejection"
local place = require "vllm_nginx_lb.place"

---@class Request
---@field stage string accepted, sent, headers, body, ended
---@field number integer|nil of this worker, from its first choice on; in $vllm_nginx_lb_request
---@field pool_name string|nil the pool of its model; nil: the pool that nginx has found
---@field place integer|nil the place of its session on the ring (affinity/session.lua)
---@field body RequestBody|nil
---@field client string|nil who sent it, where prefixes have marks
---@field marks string[]|nil the prefix marks of its body (affinity/prefix.lua)
---@field bytes number of its prompt, at most `max_request_bytes`
---@field cached table<string, number> bytes of its prompt that nodes are likely to have cached, by address
---@field tried table<string, boolean> addresses of the nodes that it was sent to
---@field is_tried_again boolean|nil true: it was sent to each node, and one of them gets it once more
---@field tries_left integer how often nginx may still be told to try it
---@field peer string|nil the address of the node that it is at now
---@field cost number bytes of its prompt that the node has to compute
---@field sent_at number Unix seconds

---@class Requests the requests of one worker
local Requests = {}
Requests.__index = Requests

local request = {}

---@class RequestParts
---@field settings table `max_request_bytes`, `tries`, `stall_seconds`
---@field in_flight InFlight
---@field ejection Ejection
---@field counts NodeCounts
---@field affinity Affinity
---@field choice Choice
---@field peers table `set_current_peer` and `set_more_tries`, as of ngx.balancer
---@field now fun(): number Unix seconds
---@field log fun(text: string)

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
function Requests:begin(it, bytes)
    local parts = self.parts
    it.bytes = math.min(bytes, parts.settings.max_request_bytes)
    it.cached = parts.affinity:cached(it)
    it.tries_left = parts.settings.tries
    self.latest = self.latest + 1
    it.number = self.latest
    self.by_number[it.number] = it
end

--- Let nginx try a request once more if another node is left. If none is, the client gets the answer of this try.
function Requests:allow_another_try(it, pool)
    local parts = self.parts
    local is_left = not it.is_tried_again or parts.choice:has_untried(it, pool, parts.in_flight:totals())
    if it.tries_left > 1 and is_left then
        it.tries_left = it.tries_left - 1
        parts.peers.set_more_tries(1)
    end
end

--- Send a request to a node. If the request is at a node already, that try has failed.
---@param it Request which has begun
---@param pool table with its present nodes
---@return string|nil why the node was chosen, as $vllm_nginx_lb_choice has it; nil if there is none
function Requests:send(it, pool)
    local parts = self.parts
    if it.peer then
        parts.ejection:failed(it.peer)
        self.places:release(it)
    end
    local node, why = self.places:take(it, pool)
    if not node then
        return nil
    end
    self:allow_another_try(it, pool)
    it.stage, it.sent_at = "sent", parts.now()
    parts.ejection:chosen(node.peer)
    parts.affinity:note(it, node)
    parts.counts:chosen(node.peer)
    return why
end

--- See the headers of an answer.
---@param it Request
function Requests.see_headers(_, it)
    if it.stage == "sent" then
        it.stage = "headers"
    end
end

--- See a piece of an answer's body that is not empty.
---@param it Request
---@param is_good boolean false: it is an error of the server
---@return boolean is_first true: this is the first piece, so the prompt is computed
function Requests:see_piece(it, is_good)
    if it.stage ~= "sent" and it.stage ~= "headers" then
        return false
    end
    local parts = self.parts
    it.stage = "body"
    parts.in_flight:add(it.peer, -it.cost, 0)
    if is_good then
        parts.ejection:succeeded(it.peer)
        parts.counts:sent_first_byte(it.peer, parts.now())
    end
    return true
end

--- Close a request's record and release its work, however the request ended.
---@param number integer|nil of the request
---@param status integer|nil of the last node's answer; nil: no answer, or the client has gone
function Requests:finish(number, status)
    local it = number and self.by_number[number]
    if not it then
        return
    end
    self.by_number[number] = nil
    if it.peer and ejection.is_failure(status) then
        self.parts.ejection:failed(it.peer)
    end
    self.places:release(it)
    it.stage = "ended"
end

--- Eject stalled nodes: a stalled node has sent headers, and then no first byte to any client for `stall_seconds`.
function Requests:eject_stalled()
    local parts = self.parts
    local now = parts.now()
    for _, it in pairs(self.by_number) do
        if it.stage == "headers" then
            local moved_at = math.max(it.sent_at, parts.counts:last_first_byte(it.peer))
            if now - moved_at > parts.settings.stall_seconds then
                parts.ejection:failed(it.peer)
            end
        end
    end
end

return request
