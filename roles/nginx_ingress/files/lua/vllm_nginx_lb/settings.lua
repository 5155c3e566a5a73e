--- Every setting of the Lua code, declared once. Pure.
-- The names are the keys of the JSON that init_by_lua passes in. A key that is left out has the default.

local settings = {}

local KINDS = {}

--- A setting is declared by its name, its kind (see KINDS), its default and what its kind needs: numbers have `low`,
-- the least value allowed, and may have a `unit`; texts may have a `pattern`; a word has its `choices`; a group has its
-- `members`. A default that is a function is called with the other settings of its group.
local DECLARED = {
    -- The weights that vllm-nginx-lb publishes. Until that file exists, the upstream file of the balancer `upstream`.
    { name = "file", kind = "text", default = "/etc/nginx/vllm-nginx-lb/weights.json" },
    { name = "upstream_file", kind = "text", default = "/etc/nginx/vllm-nginx-lb/upstream.conf" },
    -- How often the file is read, slow start raises weights, and stalled nodes and dead workers are searched.
    { name = "refresh_seconds", kind = "number", unit = "s", low = 0.001, default = 0.5 },
    -- The shared dictionary for the counts of all workers.
    { name = "dict", kind = "text", default = "vllm_nginx_lb" },
    -- The work of an open stream, as bytes of prompt.
    { name = "stream_bytes", kind = "number", unit = "bytes", low = 0, default = 1000 },
    -- How many ingresses send requests to the same nodes.
    { name = "ingresses", kind = "integer", low = 1, default = 1 },
    -- The largest work of one request.
    { name = "max_request_bytes", kind = "integer", unit = "bytes", low = 1, default = 64 * 1024 },
    -- The most nodes that one request may reach.
    { name = "tries", kind = "integer", low = 1, default = 3 },
    -- How long slow start lasts; 0: a returning node has its full weight at once.
    { name = "ramp_seconds", kind = "number", unit = "s", low = 0, default = 30 },
    -- A node that has sent headers and then no first byte for so long is stalled.
    { name = "stall_seconds", kind = "number", unit = "s", low = 0.001, default = 60 },
    -- How long a client may take to send a body; 0: as long as it likes.
    { name = "upload_seconds", kind = "number", unit = "s", low = 0, default = 300 },
    -- How many long bodies a worker looks into at once, how many may wait for that, and for how long.
    { name = "bodies_at_once", kind = "integer", low = 1, default = 4 },
    { name = "bodies_waiting", kind = "integer", low = 0, default = 100 },
    { name = "body_wait_seconds", kind = "number", unit = "s", low = 0.001, default = 30 },
    -- How a node is found that has a prompt cached.
    { name = "affinity", kind = "word", choices = { "off", "session", "prefix" }, default = "off" },
    { name = "session_header", kind = "text", pattern = "^[%w-]+$", default = "X-Session-Id" },
    -- The most work that a session's node may have: the least work of all nodes times the factor, plus the slack.
    { name = "affinity_factor", kind = "number", low = 1, default = 2 },
    { name = "affinity_slack_bytes", kind = "number", unit = "bytes", low = 0, default = 8192 },
    -- How many bytes of a body get prefix marks, for how long marks are kept, and in which shared dictionary.
    { name = "prefix_bytes", kind = "integer", unit = "bytes", low = 1, default = 16 * 1024 },
    { name = "prefix_seconds", kind = "number", unit = "s", low = 0.001, default = 600 },
    { name = "prefix_dict", kind = "text", default = "vllm_nginx_lb_prefixes" },
    {
        name = "backoff", -- of ejection
        kind = "group",
        members = {
            -- The ejection time after a node's first failure; each further one doubles it. 0: no node is ever ejected.
            { name = "first", kind = "number", unit = "s", low = 0, default = 0.5 },
            { name = "longest", kind = "number", unit = "s", low = 0, default = 10 },
            -- A failure is forgotten after so long.
            {
                name = "memory",
                kind = "number",
                unit = "s",
                low = 0.001,
                default = function(group)
                    return math.max(60, 2 * group.longest)
                end,
            },
            -- How long the trial of a node may take. Then another request may be its trial.
            { name = "probe", kind = "number", unit = "s", low = 0.001, default = 10 },
        },
    },
}

--- The message for a wrong number.
local function number_of_at_least(setting, what)
    return ("expected %s of at least %s%s"):format(what, setting.low, setting.unit and " " .. setting.unit or "")
end

local function is_number(value, low)
    return type(value) == "number" and value >= low and value < math.huge
end

--- The check of each kind of setting: what is wrong with a value, or nil.
function KINDS.number(setting, value)
    return not is_number(value, setting.low) and number_of_at_least(setting, "a number") or nil
end

function KINDS.integer(setting, value)
    local good = is_number(value, setting.low) and value == math.floor(value)
    return not good and number_of_at_least(setting, "an integer") or nil
end

function KINDS.text(setting, value)
    if type(value) ~= "string" or value == "" then
        return "expected a text"
    elseif setting.pattern and not value:match(setting.pattern) then
        return "expected a text like " .. setting.default
    end
    return nil
end

function KINDS.word(setting, value)
    for _, choice in ipairs(setting.choices) do
        if value == choice then
            return nil
        end
    end
    return "expected one of " .. table.concat(setting.choices, ", ")
end

local fill

--- The value of a setting: the given one, or its default; problems go to a list.
local function value_of(setting, given, where, filled, problems)
    if setting.kind == "group" then
        return fill(setting.members, given == nil and {} or given, where .. ".", problems)
    elseif given == nil then
        return type(setting.default) == "function" and setting.default(filled) or setting.default
    end
    local problem = KINDS[setting.kind](setting, given)
    if problem then
        problems[#problems + 1] = where .. ": " .. problem
        return setting.default
    end
    return given
end

--- All settings of a group, with the given values where there are some.
function fill(declared, given, prefix, problems)
    local filled, known = {}, {}
    if type(given) ~= "table" then
        problems[#problems + 1] = prefix:gsub("%.$", "") .. ": expected an object"
        given = {}
    end
    for _, setting in ipairs(declared) do
        known[setting.name] = true
        filled[setting.name] = value_of(setting, given[setting.name], prefix .. setting.name, filled, problems)
    end
    for name in pairs(given) do
        if not known[name] then
            problems[#problems + 1] = prefix .. tostring(name) .. ": there is no such setting"
        end
    end
    return filled
end

--- The checks across settings.
local function check_together(filled, problems)
    local backoff = filled.backoff
    if backoff.longest < backoff.first then
        problems[#problems + 1] = "backoff.longest: expected at least backoff.first"
    elseif backoff.memory <= backoff.longest then
        problems[#problems + 1] = "backoff.memory: expected more than backoff.longest"
    end
    if filled.prefix_bytes > filled.max_request_bytes then
        problems[#problems + 1] = "prefix_bytes: expected at most max_request_bytes"
    end
end

--- All settings, from those that differ from their defaults.
---@param given table by name
---@return table|nil settings by name; nil if one is unknown or wrong
---@return string|nil problems each with the name of its setting, in the order of the names
function settings.of(given)
    local problems = {}
    local filled = fill(DECLARED, given, "", problems)
    if #problems == 0 then
        check_together(filled, problems)
    end
    if #problems > 0 then
        table.sort(problems)
        return nil, table.concat(problems, "; ")
    end
    return filled
end

--- All settings, from a JSON object of those that differ from their defaults.
---@param json string
---@return table|nil settings see settings.of
---@return string|nil problems
function settings.read(json)
    -- Required here, so that a program without cjson can still use the defaults.
    local given, problem = require("cjson.safe").decode(json)
    if type(given) ~= "table" then
        return nil, "expected a JSON object" .. (problem and ": " .. problem or "")
    end
    return settings.of(given)
end

return settings
