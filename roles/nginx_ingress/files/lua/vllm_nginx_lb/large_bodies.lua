--- The large bodies that are under way, over all workers: how many requests have one, and how many bytes they take in
-- nginx's memory and in the place where nginx writes bodies. Each client may have its share of them.
-- A request counts from its headers to its end, because nginx keeps a body for the next try at another node. A length
-- that a client does not tell counts as the largest one until the body is there.
-- Each worker writes only its own counts, one for each client and one for all. What a dead worker has written is not
-- added up: only the workers of in_flight.lua are.

local KEY = "bodies:"
local EVERYBODY = "" -- no client has this name
local LARGE = 1e6 -- bytes of a body that counts as a large request
local SMALL = 1e5 -- bytes; a shorter body in memory does not count: the bound on open requests is enough for these
local SHARE = 1 / 2 -- of the place, for each client

local TOO_MANY = {
    status = 429,
    retry_after = 1,
    json = [[{"error": {"message": "Too many large requests at once; come back later.", "type": "requests", ]]
        .. [["param": null, "code": "rate_limit_exceeded"}}]],
}
local NO_ROOM = {
    status = 503,
    retry_after = 1,
    json = [[{"error": {"message": "Too many large requests at once; come back later.", "type": "server_error", ]]
        .. [["param": null, "code": "service_unavailable"}}]],
}

---@class LargeBodies
local LargeBodies = {}
LargeBodies.__index = LargeBodies

local large_bodies = {}

---@class LargeBodiesParts
---@field settings table `large_requests`, `body_buffer_bytes`, `max_body_bytes` and `body_place_bytes`
---@field dict SharedDict
---@field pid integer of this worker
---@field other_pids fun(): integer[] of the other workers that live

--- Begin to count in one worker. What a dead worker with the same process id has left is removed.
---@param parts LargeBodiesParts
---@return LargeBodies
function large_bodies.new(parts)
    local self = setmetatable({
        dict = parts.dict,
        settings = parts.settings,
        parts = parts,
        own = {}, -- by client: the requests and bytes of this worker
        open = {}, -- by the identifier of a request: what it counts for
    }, LargeBodies)
    self:forget(parts.pid)
    return self
end

--- Remove what a worker has written.
---@param pid integer
function LargeBodies:forget(pid)
    local prefix = KEY .. pid .. ":"
    for _, key in ipairs(self.dict:get_keys()) do
        if key:sub(1, #prefix) == prefix then
            self.dict:delete(key)
        end
    end
end

--- Add to what this worker counts for a client.
function LargeBodies:add(client, requests, bytes)
    local own, key = self.own[client] or { requests = 0, bytes = 0 }, KEY .. self.parts.pid .. ":" .. client
    own.requests, own.bytes = own.requests + requests, own.bytes + bytes
    if own.requests == 0 and own.bytes == 0 then
        self.own[client] = nil
        self.dict:delete(key)
    else
        self.own[client] = own
        self.dict:set(key, ("%d %d"):format(own.requests, own.bytes))
    end
end

--- What all workers count for a client.
---@param client string
---@return integer requests
---@return number bytes
function LargeBodies:sum(client)
    local own = self.own[client] or { requests = 0, bytes = 0 }
    local requests, bytes = own.requests, own.bytes
    for _, pid in ipairs(self.parts.other_pids()) do
        local some_requests, some_bytes = (self.dict:get(KEY .. pid .. ":" .. client) or ""):match "^(%d+) (%d+)$"
        requests, bytes = requests + (tonumber(some_requests) or 0), bytes + (tonumber(some_bytes) or 0)
    end
    return requests, bytes
end

--- Whether a body of this length does not count.
function LargeBodies:is_small(length)
    return length < SMALL and length <= self.settings.body_buffer_bytes
end

--- What a body of this length counts for. nginx writes to a file what exceeds its buffer, and has the rest in memory.
---@param client string
---@param length integer
---@return table|nil it nil: it is too small to count
function LargeBodies:cost(client, length)
    if self:is_small(length) then
        return nil
    end
    local is_in_place = length >= LARGE or length > self.settings.body_buffer_bytes
    return {
        client = client,
        requests = length >= LARGE and 1 or 0,
        bytes = length,
        bytes_in_place = is_in_place and length or 0,
    }
end

--- Count a request for its client and for everybody, or take it back with the factor -1.
function LargeBodies:count(it, factor)
    self:add(it.client, factor * it.requests, factor * it.bytes)
    if it.bytes_in_place > 0 then
        self:add(EVERYBODY, factor * it.requests, factor * it.bytes_in_place)
    end
end

--- The answer to a client that has too much under way now, or nil.
function LargeBodies:refusal(client)
    local settings, place = self.settings, self.settings.body_place_bytes
    local requests, bytes = self:sum(client)
    if settings.large_requests > 0 then
        local share = math.max(place * SHARE, settings.max_body_bytes)
        if requests > settings.large_requests or (place > 0 and bytes > share) then
            return TOO_MANY
        end
    end
    local _, bytes_of_all = self:sum(EVERYBODY)
    return place > 0 and bytes_of_all > place and NO_ROOM or nil
end

--- Count a request before its body is read. Whoever is let in must leave. The request counts before the sum is read, so
-- two workers cannot both give the last room away.
---@param id string names the request
---@param client fun(): string who sent it
---@param length integer|nil of the body; nil: the client does not tell
---@return Answer|nil answer to a client whose request is not let in
function LargeBodies:enter(id, client, length)
    length = length or self.settings.max_body_bytes
    if self:is_small(length) or self.open[id] then -- an error page may lead through the access phase again
        return nil
    end
    local it = self:cost(client(), length)
    self:count(it, 1)
    local answer = self:refusal(it.client)
    if answer then
        self:count(it, -1)
    else
        self.open[id] = it
    end
    return answer
end

--- A body is there: from now on its own length counts.
---@param id string
---@param length integer
function LargeBodies:received(id, length)
    local it = self.open[id]
    if it and it.bytes ~= length then
        self:count(it, -1)
        self.open[id] = self:cost(it.client, length)
        if self.open[id] then
            self:count(self.open[id], 1)
        end
    end
end

--- A request has ended, however it ended.
---@param id string
function LargeBodies:leave(id)
    local it = self.open[id]
    if it then
        self.open[id] = nil
        self:count(it, -1)
    end
end

return large_bodies
