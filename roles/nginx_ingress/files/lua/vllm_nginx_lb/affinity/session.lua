--- Affinity by a header that names a session: a session stays on one node while that costs little.
-- Each session has a preferred node on a ring of hashes, so that one node more or less moves few sessions. The
-- preferred node gets the request unless its score exceeds a limit: the best score times a factor, plus the slack that
-- a cached prompt is worth. This is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam,
-- https://arxiv.org/abs/1608.01350), with work as the bound instead of a count. It needs no memory, and several
-- ingresses choose the same node.
-- A session that a node has refused goes elsewhere for a while. If it is refused there too, its requests are the cause.
-- So one session with wrong requests does not make its node look worse than the others.

local POINTS = 64 -- of each node on the ring: keys spread to within about an eighth
local NOTHING_CACHED = {}

---@class Session: Affinity see affinity/off.lua for its functions
local Session = {}
Session.__index = Session

local session = {}

---@param settings table `session_header`; a session's node may have `affinity_factor` times the least work, >= 1, and
--- `affinity_slack_bytes` besides, >= 0: about what it saves to have the prompt cached
---@param hash fun(text: string): integer from 0 to 2^32 - 1
---@param has_refused fun(peer: string, place: integer): boolean whether a node has refused a session lately
---@return Session
function session.new(settings, hash, has_refused)
    return setmetatable({ settings = settings, hash = hash, has_refused = has_refused }, Session)
end

--- The ring of some nodes. It ignores weights: the limit on work respects them.
local function make_ring(peers, hash)
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

--- The index of the first node at or after a place of the ring that may get a request; nil if there is none.
local function find_on_ring(ring, at, may_take)
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
            if may_take(index) then
                return index
            end
            asked[index] = true
        end
    end
    return nil
end

function Session.join() end

function Session:prepare(request, header)
    local name = header(self.settings.session_header)
    request.origin = type(name) == "string" and name ~= "" and self.hash(name) or nil
end

function Session.cached()
    return NOTHING_CACHED
end

function Session:preferred(request, pool, may_take, least)
    if not request.origin then
        return nil
    end
    local nodes, settings, place = pool.nodes, self.settings, request.origin
    local node = nodes[find_on_ring(pool.ring, place, function(index)
        local found = nodes[index]
        return found.effective_weight > 0 and may_take(found) and not self.has_refused(found.peer, place)
    end)]
    if not node then
        return nil
    end
    return node, settings.affinity_factor * least + settings.affinity_slack_bytes / node.effective_weight
end

function Session.note() end

--- Weights change more often than nodes, so most of the time the former ring stays.
function Session:on_nodes(pool, former)
    local peers = {}
    for i, node in ipairs(pool.nodes) do
        peers[i] = node.peer
    end
    pool.ring_of = table.concat(peers, "\n")
    pool.ring = former and former.ring_of == pool.ring_of and former.ring or make_ring(peers, self.hash)
end

return session
