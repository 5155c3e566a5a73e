--- Read the settings of the Lua code, and check them. Pure.

local DECLARED = require "vllm_nginx_lb.declared_settings"

local settings = {}

local KINDS = {}

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
