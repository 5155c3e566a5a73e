--- A shared dictionary of nginx in a table, with a clock that the test moves.

local Dict = {}
Dict.__index = Dict

local function new()
    return setmetatable({ values = {}, ends = {}, now = 0 }, Dict)
end

function Dict:get(key)
    if self.ends[key] and self.now >= self.ends[key] then
        self:delete(key)
    end
    return self.values[key]
end

function Dict:set(key, value, seconds)
    self.values[key], self.ends[key] = value, seconds and seconds > 0 and self.now + seconds or nil -- 0: never
    return true
end

function Dict:add(key, value, seconds)
    if self:get(key) ~= nil then
        return false, "exists"
    end
    return self:set(key, value, seconds)
end

function Dict:incr(key, by, first, seconds)
    local was = self:get(key)
    if was == nil then
        self:set(key, first + by, seconds)
        return first + by
    end
    self.values[key] = was + by
    return was + by
end

function Dict:expire(key, seconds)
    self.ends[key] = self.now + seconds
end

function Dict:delete(key)
    self.values[key], self.ends[key] = nil, nil
end

function Dict:ttl(key)
    return self:get(key) ~= nil and self.ends[key] and self.ends[key] - self.now or nil
end

function Dict:get_keys()
    local keys = {}
    for key in pairs(self.values) do
        keys[#keys + 1] = key
    end
    return keys
end

return new
