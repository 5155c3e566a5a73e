--- Affinity by prompt prefixes: which node was sent which beginning of a prompt. A node probably has such a beginning
-- in its prefix cache. A request's prefix marks name the beginnings of its prompt (prompt_marks.lua).
-- Cached bytes count as work that the node saves. No node is preferred by more than that. A node that has refused a
-- prompt with the same first mark lately has none of it, see affinity/session.lua.
-- One client cannot fill the memory for all: each has a share of a full memory (mark_shares.lua).

local mark_shares = require "vllm_nginx_lb.mark_shares"
local prompt_marks = require "vllm_nginx_lb.prompt_marks"

local MOST_PEERS = 16 -- how many nodes each mark remembers, the last ones

---@class Prefix: Affinity see affinity/off.lua for its functions
local Prefix = {}
Prefix.__index = Prefix

local prefix = {}

---@class PrefixParts
---@field settings table `prefix_seconds`, for how long a node is taken to keep a prompt
---@field dict SharedDict of the marks
---@field hashes PromptHashes
---@field now fun(): number seconds of a clock that nobody sets
---@field has_refused fun(peer: string, origin: integer): boolean

---@param parts PrefixParts
---@return Prefix
function prefix.new(parts)
    local it = { parts = parts, settings = parts.settings, dict = parts.dict, shares = mark_shares.new(parts.dict) }
    return setmetatable(it, Prefix)
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

--- The nodes of a mark, and since when. The dictionary's own times follow the wall clock.
function Prefix:peers_of(mark)
    local at, peers = (self.dict:get(mark) or ""):match "^(%d+) (.*)$"
    if not at or self.parts.now() - tonumber(at) > self.settings.prefix_seconds then
        return nil
    end
    return peers
end

--- Only the nodes with the longest prefix count. Other nodes may have its beginning, such as the system prompt of many
-- chats. Counting these too would spread chats over the caches of many nodes (docs/decisions.md).
function Prefix:cached(request)
    local found, marks, has_refused = {}, request.marks or {}, self.parts.has_refused
    for count = #marks, 1, -1 do
        local peers = self:peers_of(marks[count])
        if peers then
            for peer in peers:gmatch "%S+" do
                found[peer] = not has_refused(peer, request.origin) and request.mark_ends[count] or nil
            end
            break
        end
    end
    return found
end

function Prefix.preferred()
    return nil
end

--- The nodes of a mark, this one first.
local function with(peer, peers)
    local found, count = { peer }, 1
    for other in peers:gmatch "%S+" do
        if other ~= peer and count < MOST_PEERS then
            count = count + 1
            found[count] = other
        end
    end
    return table.concat(found, " ")
end

function Prefix:note(request, node)
    local known, fresh, now = {}, {}, self.parts.now()
    for i, mark in ipairs(request.marks or {}) do
        known[i] = self:peers_of(mark)
        fresh[#fresh + 1] = not known[i] and mark or nil
    end
    self.shares:make_room(request.client, fresh)
    for i, mark in ipairs(request.marks or {}) do
        local value = ("%d %s"):format(now, with(node.peer, known[i] or ""))
        self.dict:set(mark, value, self.settings.prefix_seconds)
    end
end

function Prefix.on_nodes() end

return prefix
