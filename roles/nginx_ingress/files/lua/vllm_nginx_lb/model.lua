--- The model that a request asks for: the value of `model` in the outermost object of its body. A reader of
-- json_walk.lua. It keeps a few hundred bytes, however long the value is.

local cjson = require "cjson.safe"

local LONGEST = 256 -- of a name, in characters
local LONGEST_ESCAPED = 6 * LONGEST + 2 -- with its quotes

---@class Model: Reader
---@field parts string[] of the value, as it is in the body
---@field bytes integer of the value
local Model = {}
Model.__index = Model

local model = {}

--- For the body of one request.
---@return Model
function model.new()
    return setmetatable({ parts = {}, bytes = 0 }, Model)
end

--- Add itself to the readers of a walk.
---@param readers table<string, Reader> by key
function Model:join(readers)
    readers.model = self
end

--- If there are several, the last one counts, as in JSON libraries.
function Model:begin()
    self.parts, self.bytes = {}, 0
end

function Model:see(piece, first, last)
    self.bytes = self.bytes + last - first + 1
    if self.bytes <= LONGEST_ESCAPED then
        self.parts[#self.parts + 1] = piece:sub(first, last)
    end
end

Model.see_string = Model.see

--- The name of the model.
---@return string|nil name nil: there is none, or it is too long for a name
function Model:name()
    if self.bytes > LONGEST_ESCAPED then
        return nil
    end
    local name = cjson.decode("[" .. table.concat(self.parts) .. "]")
    name = name and name[1]
    return type(name) == "string" and #name <= LONGEST and name or nil
end

return model
