--- Remember which nodes were sent which beginnings of prompts: they are likely to have them in their prefix caches.
--
-- A body is named by marks, one for each whole block from its beginning, each standing for all before it as well, as
-- vLLM names the blocks of its cache (https://docs.vllm.ai/en/stable/design/prefix_caching.html). So a chat's next turn
-- is found by what it has in common with the turn before, and a question by the system prompt it shares with others.

local prefix = {}

prefix.BLOCK_BYTES = 1024
local MOST_PEERS = 16 -- of each mark, the last ones

--- The marks of a body.
-- @tparam string body
-- @tparam number bytes how much of its beginning to look at
-- @tparam function hash called with a text: a short text
-- @treturn {string,...} the last one stands for the most
function prefix.marks(body, bytes, hash)
    local marks, mark = {}, ""
    for last = prefix.BLOCK_BYTES, math.min(bytes, #body), prefix.BLOCK_BYTES do
        mark = hash(mark .. body:sub(last - prefix.BLOCK_BYTES + 1, last))
        marks[#marks + 1] = mark
    end
    return marks
end

--- How much of a body those nodes are likely to have cached that have the most of it. Others may have its beginning,
-- the system prompt of many chats; to count that as well would spread chats over caches (docs/decisions.md).
-- @param dict a shared dictionary
-- @treturn table bytes by peer
function prefix.cached(dict, marks)
    local found = {}
    for count = #marks, 1, -1 do
        local peers = dict:get(marks[count])
        if peers then
            for peer in peers:gmatch "%S+" do
                found[peer] = count * prefix.BLOCK_BYTES
            end
            break
        end
    end
    return found
end

--- Note that a node is sent a body.
-- @tparam number seconds how long it is likely to keep it
function prefix.note(dict, marks, peer, seconds)
    for _, mark in ipairs(marks) do
        local peers, count = { peer }, 1
        for other in (dict:get(mark) or ""):gmatch "%S+" do
            if other ~= peer and count < MOST_PEERS then
                count = count + 1
                peers[count] = other
            end
        end
        dict:set(mark, table.concat(peers, " "), seconds)
    end
end

return prefix
