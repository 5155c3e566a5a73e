--- What one try says about its node. Pure.

local outcome = {}

---@class Try
---@field status integer|nil of the answer, or the one that nginx has made for lack of one; nil: the client has gone
---@field was_sent boolean true: bytes of the request have reached the node's connection
---@field has_answer boolean true: the node has sent the headers of an answer
---@field says_full boolean|nil true: the answer is one of the inference server itself, or names a time to come back

--- A try whose answer answer_guard.lua refused. Its connection cannot be used again.
outcome.NO_ANSWER = { status = 502, was_sent = true, has_answer = false }

-- The kinds of a try:
--   good          an answer below 300, and 304
--   refusal       400 to 499; the request may have earned it
--   fault         500 and others that the node itself has made; an inference server redirects nobody
--   full          503 of the inference server: it takes no more requests now, and another node may
--   gateway       502, 503 or 504 of something in front of the inference server, which is gone
--   unreachable   there was no connection, so the request cannot be the cause
--   broken        the connection broke before the headers; also a kept one that the node has closed at that moment
--   timed_out     no headers in time, so the node may still work on the request
--   left          the client has gone before an answer
local GATEWAY = { [502] = true, [503] = true, [504] = true }

--- The kind of a try that had the headers of an answer.
local function kind_of_answer(try)
    local status = try.status
    if status < 300 or status == 304 then
        return "good"
    elseif status < 400 then
        return "fault"
    elseif status < 500 then
        return "refusal"
    elseif status == 503 and try.says_full then
        return "full"
    end
    return GATEWAY[status] and "gateway" or "fault"
end

--- The kind of a try.
---@param try Try
---@return string kind see above
function outcome.kind_of(try)
    if not try.status then
        return "left"
    elseif try.has_answer then
        return kind_of_answer(try)
    elseif not try.was_sent then
        return "unreachable"
    end
    return try.status == 504 and "timed_out" or "broken"
end

-- The statuses that are counted by themselves. The others are counted by their class, so there are few labels.
local COUNTED = {}
for _, status in ipairs { 400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504 } do
    COUNTED[status] = true
end

-- Answers with a good status that are faults. NO_OUTPUT: the node has ended the answer without output, or the answer is
-- an error. CUT_OFF: the node has broken the answer off, or a stream has an error in it.
outcome.NO_OUTPUT, outcome.CUT_OFF = "no_output", "cut_off"

-- Any answer to a request that computes nothing. It says nothing about the engine, and no share may count it.
outcome.LIGHT = "light"

--- All labels of tries.
outcome.LABELS = { "1xx", "2xx", "3xx", "4xx", "5xx", "unreachable", "broken", "timed_out", "left", outcome.LIGHT }
table.insert(outcome.LABELS, outcome.NO_OUTPUT)
table.insert(outcome.LABELS, outcome.CUT_OFF)
for status in pairs(COUNTED) do
    outcome.LABELS[#outcome.LABELS + 1] = tostring(status)
end
table.sort(outcome.LABELS)

--- A client may send wrong requests to one node after another, by its session. If another node has given the same bad
-- answer within so many seconds, the requests are probably the cause.
outcome.COMMON_SECONDS = 60

--- Whether a label says that an answer was bad; the request may have earned it.
outcome.IS_BAD = {}
for _, label in ipairs(outcome.LABELS) do
    outcome.IS_BAD[label] = not label:find "^[12]" and label ~= "left" and label ~= outcome.LIGHT
end

--- The label under which a try is counted: the status or its class, or the kind of a try without an answer.
---@param try Try
---@param kind string of it
---@return string one of outcome.LABELS
function outcome.label_of(try, kind)
    local status = try.status
    if not status or not try.has_answer then
        return kind
    elseif COUNTED[status] then
        return tostring(status)
    end
    return math.min(5, math.max(1, math.floor(status / 100))) .. "xx"
end

--- The last but `back` of nginx's values for the tries of a request, as of $upstream_status: "502, 200 : -". While
-- a node is chosen for the second try and later ones, that try has no value yet: "502 : ".
local function value_of(values, back)
    local found = {}
    for value in ((values or ""):gsub(": $", ": -")):gmatch "[^%s,:]+" do
        found[#found + 1] = value
    end
    return tonumber(found[#found - back])
end

--- Read a try from nginx's variables.
---@param var table with nginx's variables
---@param back integer 0: the last try of an ended request; 1: the try that has failed while another one is chosen
---@return Try
function outcome.read(var, back)
    local status = value_of(var.upstream_status, back)
    if not status or status < 500 then
        return { status = status, was_sent = true, has_answer = status ~= nil }
    end
    local kind = var.upstream_http_content_type or ""
    return {
        status = status,
        was_sent = (value_of(var.upstream_bytes_sent, back) or 0) > 0,
        has_answer = value_of(var.upstream_header_time, back) ~= nil,
        says_full = kind:find("application/json", 1, true) == 1 or var.upstream_http_retry_after ~= nil,
    }
end

return outcome
