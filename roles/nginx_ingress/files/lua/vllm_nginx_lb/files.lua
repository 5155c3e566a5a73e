--- Files.

local files = {}

--- A file's text.
---@param path string
---@return string|nil text nil if it cannot be read
---@return string|nil problem why it cannot be read
function files.read(path)
    local file, problem = io.open(path, "rb")
    if not file then
        return nil, problem
    end
    local text = file:read "*a"
    file:close()
    return text
end

return files
