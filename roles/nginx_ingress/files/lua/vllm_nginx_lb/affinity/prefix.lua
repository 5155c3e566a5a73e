--- Affinity by prompt prefixes: which node was sent which beginning of a prompt, and how much it computed since. A node
-- probably has such a beginning in its prefix cache until newer prompts need the room.
-- Time is counted in tokens for that: the clock of a node is the tokens of prompts and answers that it had to compute
-- (cache_clock.lua). A mark counts at a node as long as the prompt up to the mark and what the node has computed since
-- would fit its KV cache together. So a long prompt is forgotten from its end, as vLLM evicts it.
-- Cached bytes count as work that the node saves. No node is preferred by more than that. A node that has refused a
-- prompt with the same first mark lately has none of it, see affinity/session.lua.
-- One client cannot fill the memory for all: each has a share of a full memory (mark_shares.lua).

local mark_shares = require "vllm_nginx_lb.mark_shares"
local prompt_marks = require "vllm_nginx_lb.prompt_marks"
local tokens = require "vllm_nginx_lb.tokens"

local MOST_PEERS = 16 -- how many nodes each mark remembers, the last ones

---@class Prefix: Affinity see affinity/off.lua for its functions
local Prefix = {}
Prefix.__index = Prefix

local prefix = {}

---@class PrefixParts
---@field dict SharedDict of the marks
---@field cache_clock CacheClock
---@field hashes PromptHashes
---@field has_refused fun(peer: string, origin: integer): boolean

---@param parts PrefixParts
---@return Prefix
function prefix.new(parts)
    return setmetatable({ parts = parts, dict = parts.dict, shares = mark_shares.new(parts.dict) }, Prefix)
end

--- A number for a mark.
local function number_of(mark)
    local number = 0
    for _, byte in ipairs { mark:byte(1, 4) } do
        number = 256 * number + byte
    end
    return number
end

function Prefix:join(request, readers)
    request.prompt = prompt_marks.new(self.parts.hashes)
    request.prompt:join(readers)
end

--- Note the marks of a prompt; the last one stands for the longest prefix. A body that cannot be looked into now, and
-- one that is no JSON object, has none.
function Prefix.prepare(_, request, _, is_whole, client)
    request.client, request.marks, request.mark_ends = client(), {}, {}
    if is_whole then
        request.marks, request.mark_ends, request.prompt_bytes = request.prompt:finish()
        request.origin = request.marks[1] and number_of(request.marks[1])
    end
    request.prompt = nil
end

--- Whether a node probably still has a beginning of a prompt. A node that has left the list and returned has a new
-- clock.
---@param count number tokens of that beginning
---@param age integer by how many tokens the node's clock has gone on since
local function is_kept(node, count, age)
    return age >= 0 and age + count <= (node.kv_tokens or tokens.KV_TOKENS)
end

--- The nodes of a pool that probably have the prompt up to a mark: bytes by address, or nil if there are none.
function Prefix:holders(mark, bytes, nodes, request)
    local value, found, has_holders = self.dict:get(mark), {}, false
    local count, origin = bytes * request.tokens_per_byte, request.origin
    for peer, stamp in (value or ""):gmatch "(%S+)=(%d+)" do
        if nodes[peer] and is_kept(nodes[peer], count, self.parts.cache_clock:of(peer) - tonumber(stamp)) then
            has_holders = true
            found[peer] = not self.parts.has_refused(peer, origin) and bytes or nil
        end
    end
    return has_holders and found or nil
end

--- Only the nodes with the longest prefix count. Other nodes may have its beginning, such as the system prompt of many
-- chats. Counting these too would spread chats over the caches of many nodes (docs/decisions.md).
function Prefix:cached(request, pool)
    local marks = request.marks or {}
    for i = #marks, 1, -1 do
        local found = self:holders(marks[i], request.mark_ends[i], pool.by_peer, request)
        if found then
            return found
        end
    end
    return {}
end

function Prefix.preferred()
    return nil
end

--- The nodes of a mark, this one first.
---@param own string this node and its clock
---@param value string|nil the mark's former nodes
local function with(peer, own, value)
    if not value then
        return own
    end
    local found, count = { own }, 1
    for other, at in value:gmatch "(%S+)=(%d+)" do
        if other ~= peer and count < MOST_PEERS then
            count = count + 1
            found[count] = other .. "=" .. at
        end
    end
    return table.concat(found, " ")
end

--- The shortest prefix is written last, so that a full memory forgets the ends of prompts first.
function Prefix:note(request, node)
    local marks, known, fresh = request.marks or {}, {}, {}
    for i = 1, #marks do
        known[i] = self.dict:get(marks[i])
        fresh[#fresh + 1] = not known[i] and marks[i] or nil
    end
    self.shares:make_room(request.client, fresh)
    local own = ("%s=%.0f"):format(node.peer, self.parts.cache_clock:of(node.peer))
    for i = #marks, 1, -1 do
        self.dict:set(marks[i], with(node.peer, own, known[i]))
    end
end

function Prefix.on_nodes(_, pool)
    pool.by_peer = {}
    for _, node in ipairs(pool.nodes) do
        pool.by_peer[node.peer] = node
    end
end

return prefix
