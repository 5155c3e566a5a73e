--- The pool of a request, by the model in its body. Pure.
-- Only pools that name their models are found in this way. If no pool does, or if nginx has found the pool itself (by
-- path, name or X-Model), the pool of nginx stays.

local cjson = require "cjson.safe"
local model = require "vllm_nginx_lb.model"

local router = {}

local RETRY_SECONDS = 1

---@class Answer an answer to the client in place of a node's
---@field status integer of HTTP
---@field json string
---@field retry_after integer|nil seconds after which the client may try again

--- OpenAI's answer for a model that does not exist.
local function no_such_model(name)
    local message = "The model `" .. name .. "` does not exist."
    local problem = { message = message, type = "invalid_request_error", param = "model", code = "model_not_found" }
    return { status = 404, json = cjson.encode { error = problem } }
end

--- The answer where too many long bodies wait for their model to be found.
---@return Answer
function router.too_many_bodies()
    local message = "Too many large requests at once; come back later."
    local problem = { message = message, type = "server_error", code = "service_unavailable" }
    return { status = 503, json = cjson.encode { error = problem }, retry_after = RETRY_SECONDS }
end

--- The models of all pools.
local function list_of_models(models)
    local listed = {}
    for name in pairs(models) do
        listed[#listed + 1] = { id = name, object = "model", created = 0, owned_by = "vllm" }
    end
    table.sort(listed, function(a, b)
        return a.id < b.id
    end)
    return { status = 200, json = cjson.encode { object = "list", data = listed } }
end

--- Begin to find a request's pool.
---@param models table<string, string> the pool of each model
---@param path string of the request
---@return Model|nil search what has to read the body; nil: the pool that nginx has found stays
---@return Answer|nil answer for the client, whose request then goes to no node
function router.search(models, path)
    if not next(models) then
        return nil
    elseif path == "/v1/models" then
        return nil, list_of_models(models)
    end
    return model.new()
end

--- The pool of a model.
---@param models table<string, string> the pool of each model
---@param name string|nil of the model, as the request has it
---@return string|nil pool nil: the one that nginx has found
---@return Answer|nil answer for the client, whose request then goes to no node
function router.pool_of(models, name)
    if not name then
        return nil
    elseif not models[name] then
        return nil, no_such_model(name)
    end
    return models[name]
end

return router
