--- A request's body. The first module that needs it reads it; the others use the same text.

local files = require "vllm_nginx_lb.files"

---@class RequestBody
local RequestBody = {}
RequestBody.__index = RequestBody

local request_body = {}

--- Of the request of this phase, access or later; nothing is read yet.
---@return RequestBody
function request_body.new()
    return setmetatable({ is_read = false, text = nil }, RequestBody)
end

--- The body, or its beginning. The first call decides how much of it all callers get.
---@param bytes integer|nil how many bytes to read of a body that nginx has written to a file; nil: all of it
---@return string|nil text nil if there is none
function RequestBody:read(bytes)
    if not self.is_read then
        self.is_read = true
        ngx.req.read_body()
        local path = ngx.req.get_body_file()
        self.text = path and files.read(path, bytes) or not path and ngx.req.get_body_data() or nil
    end
    return self.text
end

return request_body
