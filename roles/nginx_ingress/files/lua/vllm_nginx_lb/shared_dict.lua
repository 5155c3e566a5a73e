--- Checked writes to a shared dictionary of nginx. Writes that do not fit are counted over all workers, and each worker
-- logs the first one.
-- A full dictionary drops the least recently used entries. So a write that succeeded may have removed another entry.
-- Such a write also counts as one that did not fit.

local FULL = "full" -- in the dictionary: how many writes did not fit
local HARMLESS = { exists = true, ["not found"] = true } -- reasons of a write that changes nothing and lacks no memory

---@class SharedDict
---@field name string as nginx.conf has it
local SharedDict = {}
SharedDict.__index = SharedDict

local shared_dict = {}

---@class SharedDictOptions
---@field name string as nginx.conf has it
---@field may_forget boolean|nil true: it is a cache, and dropped entries are not logged
---@field advice string what to do when it is full
---@field log fun(text: string)

--- Use a dictionary.
---@param dict table an nginx shared dictionary
---@param options SharedDictOptions
---@return SharedDict
function shared_dict.open(dict, options)
    dict:add(FULL, 0) -- now, because later the dictionary may be full
    return setmetatable({ dict = dict, name = options.name, options = options, is_said = false }, SharedDict)
end

--- Check the results of a write, and return the first two.
function SharedDict:checked(done, problem, dropped_others)
    local has_failed = problem and not HARMLESS[problem]
    if has_failed or dropped_others then
        self.dict:incr(FULL, 1, 0)
        if not self.is_said and (has_failed or not self.options.may_forget) then
            self.is_said = true
            local what = has_failed and "a write failed (" .. problem .. ")" or "a write dropped something else"
            self.options.log(("the shared dictionary %s is full, %s; %s"):format(self.name, what, self.options.advice))
        end
    end
    return done, problem
end

--- Set a value.
---@param key string
---@param value string|number|boolean
---@param seconds number|nil for how long; nil or 0: for ever
---@return boolean done
---@return string|nil problem
function SharedDict:set(key, value, seconds)
    return self:checked(self.dict:set(key, value, seconds))
end

--- Set a value where there is none.
---@return boolean done false if there is one
---@return string|nil problem
function SharedDict:add(key, value, seconds)
    return self:checked(self.dict:add(key, value, seconds))
end

--- Add to a number.
---@param key string
---@param by number
---@param seconds number|nil for how long a number that begins is kept; nil: for ever
---@param first number|nil with which it begins; nil: 0
---@return number|nil sum nil if there is no room for it
---@return string|nil problem
function SharedDict:incr(key, by, seconds, first)
    return self:checked(self.dict:incr(key, by, first or 0, seconds))
end

--- Remove a value.
---@param key string
function SharedDict:delete(key)
    self.dict:delete(key)
end

--- A value, or nil.
---@param key string
function SharedDict:get(key)
    return (self.dict:get(key))
end

--- How many bytes the dictionary has.
---@return integer
function SharedDict:capacity()
    return self.dict:capacity()
end

--- How many bytes are in pages of which nothing is used.
---@return integer
function SharedDict:free_space()
    return self.dict:free_space()
end

--- All keys, those of this module included.
---@return string[]
function SharedDict:get_keys()
    return self.dict:get_keys(0)
end

--- How many writes did not fit, of all workers, since nginx started.
---@return number
function SharedDict:count_full()
    return self.dict:get(FULL) or 0
end

return shared_dict
