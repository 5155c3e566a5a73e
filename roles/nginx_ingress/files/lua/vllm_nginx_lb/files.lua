--- Files.

local files = {}

--- A file's text.
---@param path string
---@param bytes integer|nil how much of its beginning; nil: all of it
---@return string|nil text nil if it cannot be read, or is empty and `bytes` is given
---@return string|nil problem why it cannot be read
function files.read(path, bytes)
    local file, problem = io.open(path, "rb")
    if not file then
        return nil, problem
    end
    local text = file:read(bytes or "*a")
    file:close()
    return text
end

return files
