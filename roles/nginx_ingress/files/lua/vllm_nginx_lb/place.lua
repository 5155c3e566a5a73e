--- A request's place at a node: nginx will send the request there, and its work is counted there.

local answer = require "vllm_nginx_lb.answer"
local kv_room = require "vllm_nginx_lb.kv_room"
local least_work = require "vllm_nginx_lb.least_work"
local tokens = require "vllm_nginx_lb.tokens"

-- How many lost races for the last place of a node end the search. Few requests lose two.
local MOST_RACES = 20

---@class Places
local Places = {}
Places.__index = Places

local place = {}

---@class PlaceParts
---@field cache_clock CacheClock
---@field in_flight InFlight
---@field open OpenPrompts
---@field tokens Tokens
---@field choice Choice
---@field peers table `set_current_peer`, as of ngx.balancer
---@field log fun(text: string)

---@param parts PlaceParts
---@return Places
function place.new(parts)
    return setmetatable({ parts = parts }, Places)
end

--- Choose a node that nginx accepts; nil if there is none.
function Places:choose(it, pool, totals)
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

--- Count a request at a node, and not more of its prompt than the node's KV cache holds: a node refuses a longer one.
-- Another worker may have taken the node's last place since the totals were added up. Then the request gives its place
-- back. Each worker counts first and looks afterwards, so two never keep one place.
---@return boolean done false: the node has as many requests as it may
function Places:occupy(it, node, totals)
    local work = self.parts.in_flight
    it.cost_tokens = math.min(kv_room.tokens(it, node), node.kv_tokens or tokens.KV_TOKENS)
    it.cost = math.min(least_work.cost(it, node), math.ceil(it.cost_tokens / it.tokens_per_byte))
    work:add(node.peer, it.cost, 1)
    if node.max_conns > 0 and work:streams_at(node.slot) > node.max_conns then
        work:add(node.peer, -it.cost, -1)
        it.tried[node.peer] = nil
        return false
    end
    it.peer, it.node, it.pending = node.peer, node, it.cost
    it.ahead = totals[2 * node.slot] + it.cost
    self.parts.cache_clock:add(node.peer, it.cost_tokens)
    self.parts.open:add(node.peer, it.cost_tokens)
    kv_room.take(node, it.cost_tokens)
    return true
end

--- Take a place for a request. After a lost race, choose again: both requests may have given back the one place that
-- was left.
---@param it Request with `bytes`, `tokens_per_byte`, `cached` and `tried`; gets `peer`, `cost`, `cost_tokens`,
--- `pending` and `ahead`
---@param pool table its `nodes`
---@return table|nil node nil if there is none
---@return string|nil why as $vllm_nginx_lb_choice has it
function Places:take(it, pool)
    for _ = 1, MOST_RACES do
        local totals = self.parts.in_flight:totals()
        local node, why = self:choose(it, pool, totals)
        if not node then
            return nil
        elseif self:occupy(it, node, totals) then
            return node, why
        end
    end
    return nil
end

--- Learn how many tokens a prompt has. Only a body that was looked into whole shows what of it is the prompt.
function Places:learn(it)
    local count = answer.prompt_tokens(it)
    if count and it.prompt_bytes then
        self.parts.tokens:learn(it.client, it.pool.name or "", it.model, it.prompt_bytes, count)
    end
end

--- Give a request's place back, if it has one.
---@param it Request
---@param is_refused boolean true: its node has not begun its prompt
function Places:release(it, is_refused)
    if it.peer then
        self.parts.in_flight:add(it.peer, -it.pending, -1)
        self.parts.open:add(it.peer, -it.cost_tokens)
        kv_room.take(it.node, -it.cost_tokens)
        self.parts.cache_clock:add(it.peer, is_refused and -it.cost_tokens or answer.tokens(it))
        self:learn(it)
        it.peer, it.node, it.pending, it.stage = nil, nil, 0, "accepted"
        answer.forget(it)
    end
end

return place
