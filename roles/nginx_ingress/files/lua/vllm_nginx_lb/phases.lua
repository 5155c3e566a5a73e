--- What each phase of nginx calls. No other module sets nginx's variables. request.lua has the life of a request.

local answer_guard = require "vllm_nginx_lb.answer_guard"
local ending = require "vllm_nginx_lb.ending"
local former_key = require "vllm_nginx_lb.former_key"
local meter = require "vllm_nginx_lb.meter"
local outcome = require "vllm_nginx_lb.outcome"
local request_body = require "vllm_nginx_lb.request_body"
local router = require "vllm_nginx_lb.router"
local worker = require "vllm_nginx_lb.worker"
-- Loaded here, before there are workers: a worker must never load a file of a later version.
require "vllm_nginx_lb.admin"

-- NGX_BUSY: nginx notes that there is no node, and error_answers.conf makes a 503 of it. Other statuses become a 500.
local NO_LIVE_NODE = -3

-- The methods of requests that compute nothing, such as one for the list of models.
local IS_LIGHT = { GET = true, HEAD = true, OPTIONS = true }

local NO_MODELS = {}

local phases = {}

--- init_by_lua: read the settings.
---@param json string see worker.configure
function phases.init(json)
    worker.configure(json)
end

--- init_worker_by_lua: start.
function phases.init_worker()
    worker.start()
end

--- The value of a header of this request.
local function header(name)
    return ngx.req.get_headers()[name]
end

--- Who sent this request: the name of the client's key, or its address, as for the limits.
local function client()
    local var = ngx.var
    local name = var.vllm_nginx_lb_client or ""
    return name ~= "" and name or var.vllm_nginx_lb_network or var.binary_remote_addr
end

--- Answer a client instead of a node.
local function say(answer)
    ngx.status = answer.status
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Retry-After"] = answer.retry_after
    ngx.say(answer.json)
    return ngx.exit(answer.status)
end

--- Begin the record of a request.
local function accept()
    local request = worker.requests.accept()
    ngx.ctx.vllm_nginx_lb = request
    return request
end

--- Read the body once: for its pool, unless nginx has found that by the path, name or X-Model, and for the affinity.
---@param request Request gets `pool_name`, its session or its prefix marks
---@return Answer|nil answer for the client, whose request then goes to no node
local function read(request)
    local models = (ngx.var.vllm_nginx_lb_route or "") == "" and worker.weights:models() or NO_MODELS
    local search, answer = router.search(models, ngx.var.uri)
    if answer then
        return answer
    end
    local readers = {}
    if search then
        search:join(readers)
    end
    worker.affinity:join(request, readers)
    local done, is_whole = request.body:walk(readers)
    if search and not done then
        return router.too_many_bodies()
    elseif search and is_whole then
        local name = search:name()
        request.pool_name, answer = router.pool_of(models, name)
        request.model = request.pool_name and name
    end
    worker.affinity:prepare(request, header, is_whole, client)
    return answer
end

--- access_by_lua: accept a request unless its client has too much under way, receive its body, find its pool, and its
-- session or prefix marks.
function phases.access()
    local id = ngx.var.vllm_nginx_lb_id
    local refusal = worker.large_bodies:enter(id, client, request_body.announced_length())
    if refusal then
        ngx.req.discard_body() -- or it would be read as the next request of its connection
        return say(refusal)
    end
    local request, body = accept(), request_body.new(worker.bodies, client)
    request.body = body
    body:receive(worker.settings.upload_seconds)
    worker.large_bodies:received(id, tonumber(ngx.var.request_length))
    local answer = read(request)
    if answer then
        return say(answer)
    end
end

--- balancer_by_lua: choose a node for a request, or another one when a try has failed.
---@param pool_name string the pool that nginx has found; a pool found by the model wins
function phases.balance(pool_name)
    local request = ngx.ctx.vllm_nginx_lb or accept()
    pool_name = request.pool_name or pool_name
    local pool = worker.weights:pools()[pool_name]
    if not pool then
        ngx.log(ngx.ERR, "vllm-nginx-lb: no nodes are known of ", pool_name, "; see ", worker.settings.file)
        return ngx.exit(NO_LIVE_NODE)
    end
    local var = ngx.var
    if not request.number then
        -- An error page of nginx has sent this request to a node again: close the former record, begin a new one.
        worker.requests:finish(tonumber(var.vllm_nginx_lb_request), outcome.read(var, 1))
        request.is_light = IS_LIGHT[var.request_method]
        worker.requests:begin(request, tonumber(var.content_length) or tonumber(var.request_length) or 0, pool)
        var.vllm_nginx_lb_request, var.vllm_nginx_lb_pool_name = request.number, pool_name
    end
    local why = worker.requests:send(request, pool, request.peer and outcome.read(var, 1))
    if not why then
        var.vllm_nginx_lb_free_in = worker.free_places:seconds(pool_name)
        return ngx.exit(NO_LIVE_NODE)
    end
    var.vllm_nginx_lb_choice = why
end

--- access_by_lua where nginx asks a node again with the former key: find the record of the request again, which nginx
-- has lost in the redirect.
function phases.ask_again()
    ngx.ctx.vllm_nginx_lb = worker.requests:under_way(tonumber(ngx.var.vllm_nginx_lb_request))
end

--- header_filter_by_lua: check the headers of an answer, and see them.
function phases.header_filter()
    local request = ngx.ctx.vllm_nginx_lb
    if not answer_guard.is_answer() then
        -- log_by_lua would see the node's status, which is 200 for what is not HTTP.
        worker.requests:finish(request and request.number, outcome.NO_ANSWER)
        return answer_guard.refuse()
    elseif former_key.is_wanted(ngx.status, ngx.var) then
        return former_key.ask_again()
    end
    if request then
        worker.requests:see_headers(request, ngx.header["Content-Type"], ngx.header["Content-Encoding"])
    end
end

--- body_filter_by_lua: see a piece of an answer.
function phases.body_filter()
    local request = ngx.ctx.vllm_nginx_lb
    if not request then
        return
    end
    local piece = ngx.arg[1]
    ending.see(request, piece == "", ngx.arg[2])
    if piece ~= "" then
        local is_good = ngx.status < ngx.HTTP_SPECIAL_RESPONSE -- 300
        if worker.requests:see_piece(request, piece, is_good) then
            ngx.var.vllm_nginx_lb_first_byte_time = meter.first_output_time(ngx.now(), ngx.req.start_time())
        end
    end
end

--- log_by_lua: count a request out.
function phases.log()
    local var, request = ngx.var, ngx.ctx.vllm_nginx_lb
    if request and request.body then
        request.body:close()
    end
    worker.large_bodies:leave(var.vllm_nginx_lb_id)
    worker.unfit:see(var)
    local number = tonumber(var.vllm_nginx_lb_request)
    if number then
        worker.requests:finish(number, outcome.read(var, 0))
    end
    if (var.vllm_nginx_lb_choice or "") ~= "" then
        worker.free_places:freed(var.vllm_nginx_lb_pool_name)
    end
end

--- log_by_lua of the server for unknown names: count a request.
function phases.log_unknown_name()
    ngx.var.vllm_nginx_lb_unknown_names = worker.unfit:count("unknown_name", true)
end

return phases
