--- Facts about each node, shared by all workers: how often it was chosen, what became of these tries, when it last sent
-- the first output of a good answer, and how long that took in all.

local node_keys = require "vllm_nginx_lb.node_keys"
local outcome = require "vllm_nginx_lb.outcome"

local CHOSEN, LAST_OUTPUT, ANSWERED, EJECTED = "picks", "last output", "answered ", "ejected " -- see node_keys
local PASSED_OVER = "passed over" -- see node_keys
-- Of streams with good first outputs: how many, and seconds in all from sending a request to its first output.
local FIRST_OUTPUTS, PREDICTED, SEEN_SECONDS = "first outputs", "predicted seconds", "seen seconds" -- see node_keys
local BAD = "bad answers" -- of all nodes
local GAVE = "gave " -- when it last gave an answer of a label that shows something about the engine
-- The origin (request.lua) of a request that it has refused, and when. There are KINDS entries for each node, and an
-- origin has the entry of its number modulo KINDS. So the newest of several in one entry is remembered.
local REFUSED, KINDS = "refused ", 64
local SEEN = "seen " -- whether any try was counted under a label

---@class NodeCounts
local NodeCounts = {}
NodeCounts.__index = NodeCounts

local node_counts = {}

--- Keep these facts in a dictionary.
---@param dict SharedDict
---@return NodeCounts
function node_counts.new(dict)
    return setmetatable({ dict = dict, is_seen = {} }, NodeCounts) -- labels that this worker has counted
end

--- Count a choice of a node.
---@param peer string its address
function NodeCounts:chosen(peer)
    self.dict:incr(node_keys.of(CHOSEN, peer), 1)
end

--- How often a node was chosen, tries included.
---@param peer string its address
---@return integer
function NodeCounts:times_chosen(peer)
    return self.dict:get(node_keys.of(CHOSEN, peer)) or 0
end

--- Count a request that a node does not get because its KV cache has no room (kv_room.lua).
---@param peer string its address
function NodeCounts:passed_over(peer)
    self.dict:incr(node_keys.of(PASSED_OVER, peer), 1)
end

--- How many requests a node has not got because its KV cache had no room.
---@param peer string its address
---@return integer
function NodeCounts:times_passed_over(peer)
    return self.dict:get(node_keys.of(PASSED_OVER, peer)) or 0
end

--- Note that a node has sent the first output of a good answer.
---@param peer string its address
---@param now number seconds of clock.lua
function NodeCounts:note_output(peer, now)
    self.dict:set(node_keys.of(LAST_OUTPUT, peer), now)
end

--- When a node last sent the first output of a good answer.
---@param peer string its address
---@return number at seconds of clock.lua; 0 if it never has
function NodeCounts:last_output(peer)
    return self.dict:get(node_keys.of(LAST_OUTPUT, peer)) or 0
end

--- Count a stream that has begun with good output.
---@param peer string the node's address
---@param predicted number seconds from sending the request to its first output, as predicted then
---@param seen number these seconds as they were
function NodeCounts:first_output(peer, predicted, seen)
    self.dict:incr(node_keys.of(FIRST_OUTPUTS, peer), 1)
    self.dict:incr(node_keys.of(PREDICTED, peer), predicted)
    self.dict:incr(node_keys.of(SEEN_SECONDS, peer), seen)
end

--- The streams that have begun with good output.
---@param peer string the node's address
---@return integer count
---@return number predicted seconds, see first_output, in all
---@return number seen seconds, in all
function NodeCounts:first_outputs(peer)
    local function sum(fact)
        return self.dict:get(node_keys.of(fact, peer)) or 0
    end
    return sum(FIRST_OUTPUTS), sum(PREDICTED), sum(SEEN_SECONDS)
end

--- Count what became of a try.
---@param peer string the node's address
---@param label string of outcome.LABELS
function NodeCounts:answered(peer, label)
    if not self.is_seen[label] then
        self.is_seen[label] = true
        self.dict:set(SEEN .. label, true)
    end
    self.dict:incr(node_keys.of(ANSWERED .. label, peer), 1)
    if outcome.IS_BAD[label] then
        self.dict:incr(BAD, 1)
    end
end

--- Note that a node has given a bad answer to a request that the engine had to compute.
---@param peer string its address
---@param label string of outcome.LABELS
---@param now number seconds of clock.lua
function NodeCounts:gave(peer, label, now)
    self.dict:set(node_keys.of(GAVE .. label, peer), now)
end

--- When a node last gave such an answer.
---@param peer string its address
---@param label string of outcome.LABELS
---@return number at seconds of clock.lua; -math.huge if it never has
function NodeCounts:last_gave(peer, label)
    return self.dict:get(node_keys.of(GAVE .. label, peer)) or -math.huge
end

--- Note that a node has refused a request.
---@param peer string its address
---@param origin integer of its request, see request.lua
---@param now number seconds of clock.lua
function NodeCounts:refused(peer, origin, now)
    self.dict:set(node_keys.of(REFUSED .. origin % KINDS, peer), ("%d %.6f"):format(origin, now))
end

--- Whether a node has refused a request of an origin lately, as far as is remembered.
---@param peer string its address
---@param origin integer of its request, see request.lua
---@param now number seconds of clock.lua
---@return boolean
function NodeCounts:has_refused(peer, origin, now)
    local last, at = (self.dict:get(node_keys.of(REFUSED .. origin % KINDS, peer)) or ""):match "^(%d+) (%S+)$"
    return tonumber(last) == origin and now - tonumber(at) < outcome.COMMON_SECONDS
end

--- How often something became of a try.
---@param peer string the node's address
---@param label string of outcome.LABELS
---@return integer
function NodeCounts:times_answered(peer, label)
    return self.dict:get(node_keys.of(ANSWERED .. label, peer)) or 0
end

--- The labels under which any try was counted since nginx started.
---@return string[] labels of outcome.LABELS
function NodeCounts:labels()
    local found = {}
    for _, label in ipairs(outcome.LABELS) do
        if self.dict:get(SEEN .. label) then
            found[#found + 1] = label
        end
    end
    return found
end

--- How many bad answers all nodes have given since nginx has started.
---@return integer
function NodeCounts:bad_answers()
    return self.dict:get(BAD) or 0
end

--- Count an ejection.
---@param peer string the node's address
---@param cause string of ejection.CAUSES
function NodeCounts:ejected(peer, cause)
    self.dict:incr(node_keys.of(EJECTED .. cause, peer), 1)
end

--- How often a node was ejected for a cause.
---@param peer string the node's address
---@param cause string of ejection.CAUSES
---@return integer
function NodeCounts:times_ejected(peer, cause)
    return self.dict:get(node_keys.of(EJECTED .. cause, peer)) or 0
end

--- Drop the facts about all nodes but these.
---@param peers string[] addresses
function NodeCounts:keep_only(peers)
    node_keys.keep_only(self.dict, peers)
end

return node_counts
