--- The life of a request, from its acceptance to its end. Whatever follows requests reads this record.
--
--     accepted ─▶ sent ─▶ headers ─▶ body ─▶ ended
--         ▲         │
--         └─────────┘ the try has failed, and another node is chosen
--
-- While a request is `sent` or has `headers`, its prompt counts as pending at its node; until it has ended or its try
-- has failed, it counts as a stream there. vLLM sends the headers of a stream before it has computed the prompt, so the
-- prompt is done with the first byte of the body.

local ejection = require "vllm_nginx_lb.ejection"
local least_work = require "vllm_nginx_lb.least_work"

---@class Request
---@field stage string accepted, sent, headers, body, ended
---@field number integer|nil of this worker, from its first choice on; in $vllm_nginx_lb_request
---@field pool_name string|nil of its model; nil: the pool that nginx has found
---@field place integer|nil of its session (affinity/session.lua)
---@field marks string[]|nil of its body (affinity/prefix.lua)
---@field bytes number of its prompt, as far as they count
---@field cached table<string, number> bytes of its prompt that nodes are likely to have cached, by address
---@field tried table<string, boolean> addresses of the nodes that have had it
---@field is_tried_again boolean|nil true: each node has had it, and one of them gets it once more
---@field tries_left integer how often nginx may still be told to try it
---@field peer string|nil the address of the node that has it
---@field cost number bytes of its prompt that its node has to begin with
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
--
-- They are found by a number in an nginx variable. Unlike ngx.ctx, that outlives the internal redirect to an error
-- page, after which a request must be counted out, too.
---@param parts RequestParts
---@return Requests
function request.follow(parts)
    return setmetatable({ parts = parts, by_number = {}, latest = 0 }, Requests)
end

--- Begin the record of a request. Until it is sent to a node for the first time, nothing keeps it but the caller.
---@return Request
function Requests.accept()
    return { stage = "accepted", tried = {} }
end

--- Get a request ready for its first choice.
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

--- Count a request out of the node that has it.
function Requests:release(it)
    if it.peer then
        local is_pending = it.stage == "sent" or it.stage == "headers"
        self.parts.in_flight:add(it.peer, is_pending and -it.cost or 0, -1)
        it.peer, it.stage = nil, "accepted"
    end
end

--- Let nginx try a request once more if there is a node for that; else the answer of this one is the client's.
function Requests:allow_another_try(it, pool, totals)
    local parts = self.parts
    if it.tries_left > 1 and (not it.is_tried_again or parts.choice:has_untried(it, pool, totals)) then
        it.tries_left = it.tries_left - 1
        parts.peers.set_more_tries(1)
    end
end

--- Choose a node that nginx takes; nil if there is none.
function Requests:choose(it, pool, totals)
    local parts = self.parts
    while true do
        local node, why = parts.choice:pick(it, pool, totals)
        if not node then
            return nil
        end
        it.tried[node.peer] = true
        local done, problem = parts.peers.set_current_peer(node.host, node.port)
        if done then
            return node, why
        end
        parts.log(("node %s: %s"):format(node.name, problem))
    end
end

--- Send a request to a node. If one has it already, that try has failed.
---@param it Request which has begun
---@param pool table of nodes, as it is now
---@return string|nil why the node was chosen, as $vllm_nginx_lb_choice has it; nil if there is none
function Requests:send(it, pool)
    local parts = self.parts
    if it.peer then
        parts.ejection:failed(it.peer)
        self:release(it)
    end
    local totals = parts.in_flight:totals()
    local node, why = self:choose(it, pool, totals)
    if not node then
        return nil
    end
    self:allow_another_try(it, pool, totals)
    it.peer, it.stage, it.sent_at = node.peer, "sent", parts.now()
    it.cost = least_work.cost(it, node)
    parts.ejection:taken(node.peer)
    parts.in_flight:add(node.peer, it.cost, 1)
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

--- See a piece of an answer's body, not empty.
---@param it Request
---@param is_good boolean false: it is an error of the server
---@return boolean is_first true of the first one: its prompt is done
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

--- Count a request out, however it ended: answered, broken off by the node, left by the client, refused.
---@param number integer|nil of the request
---@param status integer|nil of the last node that answered; nil: it has not, or the client has gone meanwhile
function Requests:finish(number, status)
    local it = number and self.by_number[number]
    if not it then
        return
    end
    self.by_number[number] = nil
    if it.peer and ejection.is_failure(status) then
        self.parts.ejection:failed(it.peer)
    end
    self:release(it)
    it.stage = "ended"
end

--- Eject the nodes that are stalled: they have sent headers, and then no first byte to anybody for too long.
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
