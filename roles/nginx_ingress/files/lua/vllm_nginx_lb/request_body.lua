--- A request's body, in windows: no part of it stays in Lua, however long it is.
-- nginx reads the whole body before a node is chosen, into memory or into a file. A long body is looked into with few
-- others at once (body_queue.lua), and the worker serves its other requests in between.

local clock = require "vllm_nginx_lb.clock"
local json_walk = require "vllm_nginx_lb.json_walk"

local SLICE_SECONDS = 0.001 -- for how long a body is looked into before other requests have their turn
-- A pause of 0 does not work: Debian's nginx lacks OpenResty's patch for it, and runs all expired timers before it
-- serves other requests.
local PAUSE_SECONDS = 0.001
local NOT_IN_TIME = 408

---@class RequestBody
---@field queue BodyQueue
---@field client fun(): string
---@field is_received boolean
---@field is_inside boolean it has a place that the queue gave it
---@field waits_for string|nil the client as whose body it waits in the queue
local RequestBody = {}
RequestBody.__index = RequestBody

local request_body = { WINDOW_BYTES = 32 * 1024 }

--- Of the request of this phase, access or later; nothing is read yet.
---@param queue BodyQueue of the worker
---@param client fun(): string who sent it
---@return RequestBody
function request_body.new(queue, client)
    return setmetatable({ queue = queue, client = client, is_received = false, is_inside = false }, RequestBody)
end

--- How long the body of this phase's request will be.
---@return integer|nil bytes nil: the client does not tell. HTTP/2 does not even tell whether there is a body.
function request_body.announced_length()
    local headers = ngx.var
    local length = tonumber(headers.content_length)
    if not length and not headers.http_transfer_encoding and ngx.req.http_version() < 2 then
        return 0
    end
    return length
end

--- Wait until nginx has the whole body. A client that takes longer is disconnected: nginx's own client_body_timeout
-- bounds each pause, and a client may pause for years.
---@param seconds number 0: as long as it takes
function RequestBody:receive(seconds)
    if self.is_received then
        return
    end
    self.is_received = true
    if seconds == 0 or request_body.announced_length() == 0 then
        return ngx.req.read_body()
    end
    local watch = ngx.thread.spawn(function()
        ngx.sleep(seconds)
        return ngx.exit(NOT_IN_TIME)
    end)
    ngx.req.read_body()
    ngx.thread.kill(watch)
end

--- The next windows of a file.
local function of_file(path, bytes)
    local file = assert(io.open(path, "rb"))
    return function()
        local window = bytes > 0 and file:read(math.min(bytes, request_body.WINDOW_BYTES))
        if not window then
            file:close()
            return nil
        end
        bytes = bytes - #window
        return window
    end
end

--- The next windows of a text.
local function of_text(text, bytes)
    local at, last = 1, math.min(bytes, #text)
    return function()
        if at > last then
            return nil
        end
        local window = text:sub(at, math.min(last, at + request_body.WINDOW_BYTES - 1))
        at = at + #window
        return window
    end
end

--- Show the windows of the received body to a function, and let other requests have their turn in between.
local function show(bytes, see)
    local path = ngx.req.get_body_file()
    local next_window = path and of_file(path, bytes) or of_text(ngx.req.get_body_data() or "", bytes)
    local since = clock.now()
    for window in next_window do
        if see(window) then
            return
        end
        if clock.now() - since > SLICE_SECONDS then
            ngx.sleep(PAUSE_SECONDS)
            since = clock.now()
        end
    end
end

--- Look into the body, window by window.
---@param bytes number how much of its beginning; math.huge: all of it
---@param see fun(window: string): boolean|nil gets the windows in their order, each of WINDOW_BYTES but the last;
--- true ends the looking
---@return boolean done false: too many bodies wait to be looked into
function RequestBody:each_window(bytes, see)
    self:receive(0)
    local length = tonumber(ngx.var.content_length) or tonumber(ngx.var.request_length)
    if math.min(bytes, length) <= request_body.WINDOW_BYTES then
        show(bytes, see)
        return true
    end
    self.waits_for = self.client()
    self.is_inside = self.queue:enter(self.waits_for)
    self.waits_for = nil
    if not self.is_inside then
        return false
    end
    local done, problem = pcall(show, bytes, see)
    self:close()
    if not done then
        error(problem, 0)
    end
    return true
end

--- Walk through the JSON of the whole body once, for all that read it.
---@param readers table<string, Reader> by key of the outermost object
---@return boolean done false: too many bodies wait to be looked into
---@return boolean is_whole the body is an object that ends; otherwise what the readers have seen means nothing
function RequestBody:walk(readers)
    if not next(readers) then
        return true, false
    end
    local walk = json_walk.new(readers)
    local done = self:each_window(math.huge, function(window)
        return walk:see(window)
    end)
    return done, done and walk:is_whole()
end

--- Leave the queue, or give back the place that it gave to this body. A request may end at any time.
function RequestBody:close()
    if self.waits_for then
        self.queue:stop_waiting(self.waits_for)
        self.waits_for = nil
    elseif self.is_inside then
        self.is_inside = false
        self.queue:leave()
    end
end

return request_body
