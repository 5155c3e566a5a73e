--- Find the model that a request asks for, without parsing all of its JSON: a body may have megabytes of images.

local cjson = require "cjson.safe"

local model = {}

local QUOTE, BACKSLASH, COMMA, COLON, OPEN, OPEN_LIST, CLOSE, CLOSE_LIST = ('"\\,:{[}]'):byte(1, -1)
local LONGEST = 256 -- of a name, in characters
local LONGEST_ESCAPED = 6 * LONGEST
local TURNS, MOST_TURNS = 20000, 2000000 -- between two pauses, about 10 ms; in all, about a second

--- A counter that pauses from time to time for other requests, and tells when the limit is reached.
local function turns(pause)
    local count = 0
    return function()
        count = count + 1
        if count % TURNS == 0 then
            pause()
        end
        return count > MOST_TURNS
    end
end

--- The end of the string that begins after `from`, or nil.
local function end_of_string(body, from, turn)
    while not turn() do
        local at = body:find('"', from, true)
        if not at then
            return nil
        end
        local backslashes = 0
        while body:byte(at - 1 - backslashes) == BACKSLASH and not turn() do
            backslashes = backslashes + 1
        end
        if backslashes % 2 == 0 then
            return at
        end
        from = at + 1
    end
    return nil
end

--- The value of the string between two quotes; nil if it is too long for a name.
local function text_between(body, first, last)
    if last - first - 1 > LONGEST_ESCAPED then
        return nil
    end
    local text = body:sub(first + 1, last - 1)
    if text:find("\\", 1, true) then
        text = cjson.decode('"' .. text .. '"')
    end
    return text and #text <= LONGEST and text or nil
end

--- The value of `model` in the outermost object. If there are several, the last one counts, as in JSON libraries.
-- @tparam string body JSON; the node reports other errors in it
-- @tparam ?function pause called now and then, so that a long body does not hold up other requests
-- @treturn ?string the name, or nil if there is none, or it takes too long to find
function model.of(body, pause)
    local turn = turns(pause or function() end)
    local depth, at, key, found = 0, 1, nil, nil
    while not turn() do
        at = body:find(depth < 2 and '["{}%[%],:]' or '["{}%[%]]', at)
        if not at then
            return nil
        end
        local byte = body:byte(at)
        if byte == QUOTE then
            local last = end_of_string(body, at + 1, turn)
            if not last then
                return nil
            end
            if depth == 1 and key == nil then
                key = text_between(body, at, last) or ""
            elseif depth == 1 and key == "model" then
                found, key = text_between(body, at, last), ""
            end
            at = last
        elseif byte == COLON then
            if depth == 1 and key == "model" and not body:find('^%s*"', at + 1) then
                found, key = nil, "" -- a number, a list, an object
            end
        elseif byte == COMMA then
            key = nil
        elseif byte == OPEN or byte == OPEN_LIST then
            if depth == 0 and byte == OPEN_LIST then
                return nil
            end
            depth = depth + 1
        elseif byte == CLOSE or byte == CLOSE_LIST then
            depth = depth - 1
            if depth <= 0 then
                return depth == 0 and found or nil
            end
        end
        at = at + 1
    end
    return nil
end

return model
