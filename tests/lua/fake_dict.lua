--- A shared dictionary of nginx in a table, with a clock that the test moves. A test sets `lacks_memory` to say what a
-- new key does: it "drops" others, or "fails". `free` is the free space, `bytes` the whole.

local Dict = {}
Dict.__index = Dict

local function new()
    return setmetatable({ values = {}, ends = {}, now = 0, free = 4096, bytes = 65536 }, Dict)
end

function Dict:capacity()
    return self.bytes
end

function Dict:free_space()
    return self.free
end

function Dict:get(key)
    if self.ends[key] and self.now >= self.ends[key] then
        self:delete(key)
    end
    return self.values[key]
end

function Dict:set(key, value, seconds)
    local is_new = self:get(key) == nil
    if is_new and self.lacks_memory == "fails" then
        return false, "no memory", false
    end
    self.values[key], self.ends[key] = value, seconds and seconds > 0 and self.now + seconds or nil -- 0: never
    return true, nil, is_new and self.lacks_memory == "drops"
end

function Dict:add(key, value, seconds)
    if self:get(key) ~= nil then
        return false, "exists", false
    end
    return self:set(key, value, seconds)
end

function Dict:incr(key, by, first, seconds)
    local was = self:get(key)
    if was == nil and first == nil then
        return nil, "not found"
    elseif was == nil then
        local done, problem, dropped = self:set(key, first + by, seconds)
        return done and first + by or nil, problem, dropped
    end
    self.values[key] = was + by
    return was + by
end

function Dict:expire(key, seconds)
    if self:get(key) == nil then
        return nil, "not found"
    end
    self.ends[key] = self.now + seconds
    return true
end

function Dict:delete(key)
    self.values[key], self.ends[key] = nil, nil
end

--- As in nginx: an entry that has expired may still be there, with a time below 0.
function Dict:ttl(key)
    return self.values[key] ~= nil and self.ends[key] and self.ends[key] - self.now or nil
end

function Dict:get_keys()
    local keys = {}
    for key in pairs(self.values) do
        keys[#keys + 1] = key
    end
    return keys
end

return new
