--- The bodies that a worker looks into at once, and the queue of those that wait.

---@class BodyQueue
local BodyQueue = {}
BodyQueue.__index = BodyQueue

local body_queue = {}

---@param settings table `bodies_at_once`, `bodies_waiting` and `body_wait_seconds`
---@param new_semaphore fun(count: integer): table as `new` of ngx.semaphore
---@return BodyQueue
function body_queue.new(settings, new_semaphore)
    return setmetatable({ settings = settings, places = assert(new_semaphore(settings.bodies_at_once)) }, BodyQueue)
end

--- Wait for a place. Whoever gets one must leave.
---@return boolean done false: too many wait already, or the wait was too long
function BodyQueue:enter()
    local free = self.places:count() -- below 0: so many wait
    if free <= 0 and -free >= self.settings.bodies_waiting then
        return false
    end
    return self.places:wait(self.settings.body_wait_seconds) == true
end

--- Give a place back.
function BodyQueue:leave()
    self.places:post(1)
end

return body_queue
