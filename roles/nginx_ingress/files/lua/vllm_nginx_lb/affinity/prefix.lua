--- Affinity by prompt prefixes: which node was sent which beginning of a body. A node probably has such a beginning in
-- its prefix cache.
-- A body has one prefix mark for each whole block from its beginning. A mark is a hash of the body up to the end of its
-- block, as vLLM names the blocks of its cache (https://docs.vllm.ai/en/stable/design/prefix_caching.html). So the next
-- turn of a chat has the marks of the turn before, and a question has the marks of its system prompt.
-- Cached bytes count as work that the node saves. No node is preferred by more than that. A node that has refused a
-- prompt with the same first mark lately has none of it, see affinity/session.lua.
-- One client cannot fill the memory for all: each has a share of a full memory (mark_shares.lua).

local mark_shares = require "vllm_nginx_lb.mark_shares"

local MOST_PEERS = 16 -- how many nodes each mark remembers, the last ones

---@class Prefix: Affinity see affinity/off.lua for its functions
local Prefix = {}
Prefix.__index = Prefix

local prefix = { BLOCK_BYTES = 1024 }

---@class PrefixParts
---@field settings table `prefix_bytes`, how much of a body's beginning gets marks, and `prefix_seconds`, for how long a
--- node is taken to keep a prompt
---@field dict SharedDict of the marks
---@field hash fun(text: string): string a text of 16 bytes
---@field now fun(): number seconds of a clock that nobody sets
---@field has_refused fun(peer: string, origin: integer): boolean

---@param parts PrefixParts
---@return Prefix
function prefix.new(parts)
    local it = { parts = parts, settings = parts.settings, dict = parts.dict, shares = mark_shares.new(parts.dict) }
    return setmetatable(it, Prefix)
end

--- Add the marks of the next blocks of a body.
local function mark_blocks(window, marks, hash)
    for last = prefix.BLOCK_BYTES, #window, prefix.BLOCK_BYTES do
        marks[#marks + 1] = hash((marks[#marks] or "") .. window:sub(last - prefix.BLOCK_BYTES + 1, last))
    end
end

--- A number for a mark.
local function number_of(mark)
    local number = 0
    for _, byte in ipairs { mark:byte(1, 4) } do
        number = 256 * number + byte
    end
    return number
end

--- Note the marks of a body's first bytes; the last one stands for the longest prefix. A body that cannot be looked
-- into now has none.
function Prefix:prepare(request, _, body, client)
    local marks, hash = {}, self.parts.hash
    body:each_window(self.settings.prefix_bytes, function(window)
        mark_blocks(window, marks, hash)
    end)
    request.marks, request.client, request.origin = marks, client(), marks[1] and number_of(marks[1])
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
                found[peer] = not has_refused(peer, request.origin) and count * prefix.BLOCK_BYTES or nil
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
