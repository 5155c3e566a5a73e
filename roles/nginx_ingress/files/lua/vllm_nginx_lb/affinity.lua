--- Send what belongs together to one node, as long as that costs little. Pure.
--
-- Each key has a preferred node on a ring of hashes, so that a node more or less moves few keys. The preferred one is
-- taken while its score is within a factor of the best one's, and what a cached prompt saves: consistent hashing with
-- bounded loads (Mirrokni, Thorup, Zadimoghaddam, https://arxiv.org/abs/1608.01350), the bound being work, not a count.

local affinity = {}

local POINTS = 64 -- of each node on the ring: keys spread to within about an eighth

--- Make the ring of some nodes. Weights do not matter: work decides.
-- @tparam {string,...} peers of the nodes
-- @tparam function hash called with a text: an integer from 0 to 2^32 - 1
function affinity.ring(peers, hash)
    local ring = {}
    for index, peer in ipairs(peers) do
        for point = 1, POINTS do
            ring[#ring + 1] = { at = hash(peer .. "#" .. point), index = index }
        end
    end
    table.sort(ring, function(a, b)
        return a.at < b.at or (a.at == b.at and a.index < b.index)
    end)
    return ring
end

--- The first usable node at or behind a place of the ring.
-- @tparam table ring see affinity.ring
-- @tparam number at the key's hash
-- @tparam function usable called with the index of a node
-- @treturn ?number the index of a node, or nil if none is usable
function affinity.preferred(ring, at, usable)
    local low, high = 1, #ring + 1
    while low < high do
        local middle = math.floor((low + high) / 2)
        if ring[middle].at < at then
            low = middle + 1
        else
            high = middle
        end
    end
    local asked = {}
    for step = 0, #ring - 1 do
        local index = ring[(low + step - 1) % #ring + 1].index
        if not asked[index] then
            if usable(index) then
                return index
            end
            asked[index] = true
        end
    end
    return nil
end

--- Whether the preferred node is good enough.
-- @tparam number score of the preferred node
-- @tparam number best the least score of all
-- @tparam number factor how many times that it may have, >= 1
-- @tparam number slack how much it may have besides, >= 0: about what it saves to have the prompt cached
function affinity.within(score, best, factor, slack)
    return score <= factor * best + slack
end

return affinity
