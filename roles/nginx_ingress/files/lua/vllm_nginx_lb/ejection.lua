--- Outlier ejection: a node that fails gets no requests for a short time, longer after each failure. Then a single
-- request is the node's trial: while the trial lasts, the node gets no other requests.
--
-- What counts as a failure: a try that broke off or was refused; an answer of 502, 503 or 504; and a stall, when a node
-- sends headers and then no first byte to any client (request.lua finds stalls). All workers share ejections. The
-- script decides weights and takes nodes out; ejection covers the seconds until the script has seen the failure.

-- Keys of the dictionary, by the node's address, and one for all nodes.
local FAILS, EJECTED, TRIAL, ANY_FAILED = "fails:", "out:", "probe:", "trouble"
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
---@return Ejection
function ejection.new(dict, times)
    return setmetatable({ dict = dict, times = times }, Ejection)
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
    dict:set(ANY_FAILED, true, times.memory)
end

--- Forget the failures of a node that has answered.
---@param peer string its address
function Ejection:succeeded(peer)
    local dict = self.dict
    if dict:get(ANY_FAILED) and dict:get(FAILS .. peer) then
        for _, kind in ipairs { FAILS, EJECTED, TRIAL } do
            dict:delete(kind .. peer)
        end
    end
end

--- Whether any node has failed lately. If none has, `may_take` is true for all nodes and need not be called.
---@return boolean
function Ejection:any_failed()
    return self.dict:get(ANY_FAILED) == true
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
    if self.dict:get(FAILS .. peer) then
        self.dict:add(TRIAL .. peer, true, self.times.probe)
    end
end

--- For how long a node is still ejected.
---@param peer string its address
---@return number seconds 0 if it is not
function Ejection:seconds_left(peer)
    return math.max(0, self.dict:ttl(EJECTED .. peer) or 0)
end

return ejection
