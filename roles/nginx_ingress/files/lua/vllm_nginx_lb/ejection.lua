--- Outlier ejection: a node that fails gets no requests for a short time, longer after each failure. Then a single
-- request is the node's trial: while the trial lasts, the node gets no other requests.
--
-- What counts as a failure: a try that broke off or was refused; an answer of 502, 503 or 504; and a stall, when a node
-- sends headers and then no first byte to any client (request.lua finds stalls). All workers share ejections. The
-- script decides weights and takes nodes out; ejection covers the seconds until the script has seen the failure.

-- Keys of the dictionary, by the node's address.
local FAILS, EJECTED, TRIAL = "fails:", "out:", "probe:"
local VERSION = "ejections" -- how often any of these was written
-- Not 500: the request itself can be the cause.
local FAULTY_STATUS = { [502] = true, [503] = true, [504] = true }

---@class Ejection
local Ejection = {}
Ejection.__index = Ejection

local ejection = {}

--- Keep failures in a dictionary.
---@param dict SharedDict
---@param times table seconds: `first` ejection time (0: no node is ever ejected), `longest` ejection time, `memory`,
--- after which a failure is forgotten, more than `longest`, and `probe`, how long one trial may take until the next one
---@param now fun(): number seconds of clock.lua
---@return Ejection
function ejection.new(dict, times, now)
    -- `is_out`: the nodes that get no requests as of `version`; at `next_change`, time alone changes that.
    local known = { peers = {}, is_out = {}, next_change = math.huge }
    known.dict, known.times, known.now = dict, times, now
    return setmetatable(known, Ejection)
end

--- Use another list of nodes.
---@param peers string[] addresses
function Ejection:use_nodes(peers)
    self.peers, self.version = peers, nil
end

--- Whether an answer's status is a failure of the node.
---@param status integer|nil nil: there was no answer
---@return boolean
function ejection.is_failure(status)
    return FAULTY_STATUS[status or 0] == true
end

--- Eject a node that failed. Further failures while it is ejected count as the same one.
---@param peer string its address
function Ejection:failed(peer)
    local dict, times = self.dict, self.times
    if times.first <= 0 or dict:get(EJECTED .. peer) then
        return
    end
    local fails = dict:incr(FAILS .. peer, 1) or 1
    dict:expire(FAILS .. peer, times.memory)
    dict:set(EJECTED .. peer, true, math.min(times.longest, times.first * 2 ^ (fails - 1)))
    dict:delete(TRIAL .. peer)
    dict:incr(VERSION, 1)
end

--- Forget the failures of a node that has answered.
---@param peer string its address
function Ejection:succeeded(peer)
    local dict = self.dict
    if dict:get(VERSION) and dict:get(FAILS .. peer) then
        for _, kind in ipairs { FAILS, EJECTED, TRIAL } do
            dict:delete(kind .. peer)
        end
        dict:incr(VERSION, 1)
    end
end

--- The nodes that get no requests: those that are ejected, and those whose trial is under way. Until a node fails or
-- comes back, this reads one key of the dictionary, however many nodes there are.
---@return table<string, boolean> is_out true by address; valid until the next call
function Ejection:out()
    local version = self.dict:get(VERSION)
    if version ~= self.version or self.next_change < math.huge and self.now() >= self.next_change then
        self.version, self.is_out, self.next_change = version, {}, math.huge
        for _, peer in ipairs(version and self.peers or {}) do
            local left = math.max(self.dict:ttl(EJECTED .. peer) or 0, self.dict:ttl(TRIAL .. peer) or 0)
            if left > 0 then -- an entry that has expired may still be there
                self.is_out[peer] = true
                self.next_change = math.min(self.next_change, self.now() + left)
            end
        end
    end
    return self.is_out
end

--- Whether a node may get a request: it is not ejected, and no trial of it is under way.
---@param peer string its address
---@return boolean
function Ejection:may_take(peer)
    return not (self.dict:get(EJECTED .. peer) or self.dict:get(TRIAL .. peer))
end

--- Note that a node was chosen. If it has failed before, this request is its trial.
---@param peer string its address
function Ejection:chosen(peer)
    if self.dict:get(FAILS .. peer) and self.dict:add(TRIAL .. peer, true, self.times.probe) then
        self.dict:incr(VERSION, 1)
    end
end

--- For how long a node is still ejected.
---@param peer string its address
---@return number seconds 0 if it is not
function Ejection:seconds_left(peer)
    return math.max(0, self.dict:ttl(EJECTED .. peer) or 0)
end

return ejection
