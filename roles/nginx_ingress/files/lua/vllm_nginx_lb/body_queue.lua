--- The bodies that a worker looks into at once, and the queue of those that wait. Each client has a share of the queue.

---@class BodyQueue
local BodyQueue = {}
BodyQueue.__index = BodyQueue

local body_queue = {}

local SHARE = 1 / 4 -- of those that may wait, for each client

---@param settings table `bodies_at_once`, `bodies_waiting` and `body_wait_seconds`
---@param new_semaphore fun(count: integer): table as `new` of ngx.semaphore
---@return BodyQueue
function body_queue.new(settings, new_semaphore)
    local places = assert(new_semaphore(settings.bodies_at_once))
    return setmetatable({ settings = settings, places = places, waiting = {} }, BodyQueue) -- how many, by client
end

--- Add to how many bodies of a client wait.
function BodyQueue:add(client, count)
    local waiting = (self.waiting[client] or 0) + count
    self.waiting[client] = waiting > 0 and waiting or nil
end

--- Wait for a place. Whoever gets one must leave.
---@param client string who sent the body
---@return boolean done false: too many wait already, or the wait was too long
function BodyQueue:enter(client)
    local most, free = self.settings.bodies_waiting, self.places:count() -- below 0: so many wait
    if free <= 0 and (-free >= most or (self.waiting[client] or 0) >= math.max(1, most * SHARE)) then
        return false
    end
    self:add(client, 1)
    local done = self.places:wait(self.settings.body_wait_seconds) == true
    self:add(client, -1)
    return done
end

--- Count a body out whose request has ended while it waited: `enter` will not return.
---@param client string
function BodyQueue:stop_waiting(client)
    self:add(client, -1)
end

--- Give a place back.
function BodyQueue:leave()
    self.places:post(1)
end

return body_queue
