--- When a full pool has room again: an estimate from how fast its requests end. Pure but for the clock.
--
-- Each client that is turned away books the next place, so that a crowd does not come back all at once.

-- How much the latest gap between two ends counts in the mean gap.
local SHARE_OF_LATEST = 0.2
-- In seconds. Retry-After has whole seconds; nobody should wait longer than a minute on an estimate.
local SHORTEST, LONGEST = 1, 60

---@class FreePlaces
local FreePlaces = {}
FreePlaces.__index = FreePlaces

local free_places = {}

---@class FreePlacesParts
---@field workers integer how many workers serve: this worker sees its own share of the ends
---@field now fun(): number seconds of a clock that nobody sets

---@param parts FreePlacesParts
---@return FreePlaces
function free_places.new(parts)
    return setmetatable({ parts = parts, pools = {} }, FreePlaces)
end

--- Note that a request to a pool has ended, however it ended.
---@param pool_name string
function FreePlaces:freed(pool_name)
    local now, seen = self.parts.now(), self.pools[pool_name]
    if not seen then
        self.pools[pool_name] = { at = now, booked_until = now }
        return
    end
    local gap = now - seen.at
    seen.gap = seen.gap and seen.gap + SHARE_OF_LATEST * (gap - seen.gap) or gap
    seen.at = now
end

--- Book a place for a client that is turned away.
---@param pool_name string
---@return integer seconds after which a place is probably free, 1 to 60
function FreePlaces:seconds(pool_name)
    local now, seen = self.parts.now(), self.pools[pool_name]
    if not (seen and seen.gap) then
        return SHORTEST
    end
    local gap = math.max(seen.gap, now - seen.at) / self.parts.workers
    seen.booked_until = math.min(math.max(seen.booked_until, now) + gap, now + LONGEST)
    return math.max(SHORTEST, math.ceil(seen.booked_until - now))
end

return free_places
