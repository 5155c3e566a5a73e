--- Affinity by prompt prefixes: which node was sent which beginning of a body. A node probably has such a beginning in
-- its prefix cache.
-- A body has one prefix mark for each whole block from its beginning. A mark is a hash of the body up to the end of its
-- block, as vLLM names the blocks of its cache (https://docs.vllm.ai/en/stable/design/prefix_caching.html). So the next
-- turn of a chat has the marks of the turn before, and a question has the marks of its system prompt.
-- Cached bytes count as work that the node saves. No node is preferred by more than that.

local MOST_PEERS = 16 -- how many nodes each mark remembers, the last ones

---@class Prefix: Affinity see affinity/off.lua for its functions
local Prefix = {}
Prefix.__index = Prefix

local prefix = { BLOCK_BYTES = 1024 }

---@param settings table `prefix_bytes`, how much of a body's beginning gets marks, and `prefix_seconds`, for how long a
--- node is taken to keep a prompt
---@param dict SharedDict of the marks
---@param hash fun(text: string): string a short text
---@return Prefix
function prefix.new(settings, dict, hash)
    return setmetatable({ settings = settings, dict = dict, hash = hash }, Prefix)
end

--- The marks of a body's first bytes; the last one stands for the longest prefix.
local function marks_of(body, bytes, hash)
    local marks, mark = {}, ""
    for last = prefix.BLOCK_BYTES, math.min(bytes, #body), prefix.BLOCK_BYTES do
        mark = hash(mark .. body:sub(last - prefix.BLOCK_BYTES + 1, last))
        marks[#marks + 1] = mark
    end
    return marks
end

function Prefix:prepare(request, _, body)
    local text = body:read(self.settings.prefix_bytes)
    request.marks = text and marks_of(text, self.settings.prefix_bytes, self.hash) or {}
end

--- Only the nodes with the longest prefix count. Other nodes may have its beginning, such as the system prompt of many
-- chats. Counting these too would spread chats over the caches of many nodes (docs/decisions.md).
function Prefix:cached(request)
    local found, marks = {}, request.marks or {}
    for count = #marks, 1, -1 do
        local peers = self.dict:get(marks[count])
        if peers then
            for peer in peers:gmatch "%S+" do
                found[peer] = count * prefix.BLOCK_BYTES
            end
            break
        end
    end
    return found
end

function Prefix.preferred()
    return nil
end

function Prefix:note(request, node)
    for _, mark in ipairs(request.marks or {}) do
        local peers, count = { node.peer }, 1
        for other in (self.dict:get(mark) or ""):gmatch "%S+" do
            if other ~= node.peer and count < MOST_PEERS then
                count = count + 1
                peers[count] = other
            end
        end
        self.dict:set(mark, table.concat(peers, " "), self.settings.prefix_seconds)
    end
end

function Prefix.on_nodes() end

return prefix
