--- What runs in nginx: from the phases of a request to choose, ledger, backoff, affinity and prefix.
--
-- A request's state lives in a table of its worker, found by a number in the variable $vllm_nginx_lb_request: unlike
-- ngx.ctx that outlives the internal redirect to an error page, after which the request must be counted out, too.

local affinity = require "vllm_nginx_lb.affinity"
local backoff = require "vllm_nginx_lb.backoff"
local choose = require "vllm_nginx_lb.choose"
local ledger = require "vllm_nginx_lb.ledger"
local membership = require "vllm_nginx_lb.membership"
local model = require "vllm_nginx_lb.model"
local prefix = require "vllm_nginx_lb.prefix"
local status = require "vllm_nginx_lb.status"

local cjson = require "cjson.safe"
local ffi = require "ffi"
local peers = require "ngx.balancer"

ffi.cdef "int kill(int pid, int signal);"

local NO_SUCH_PROCESS = 3 -- ESRCH
local FAULTS = { [502] = true, [503] = true, [504] = true } -- of a node; a 500 can be the doing of a request
local NO_LIVE_NODE = -3 -- NGX_BUSY, of which nginx makes a 502; another status would become a 500
-- In the dictionary, by node: how often it was chosen, and when it last sent a first byte.
local PICKS, HEARD = "picks:", "heard:"
local GOOD = "good" -- in the dictionary: the last text of the file that was good, for workers of a later reload
local RAMP_FROM = 0.1 -- of its weight, for a node that comes back

local balancer = {}

local settings, books, failures, dict, prefixes
local known -- what the file said last that was good
local last_state -- of the file: its text, or why it could not be read
local requests, latest = {}, 0 -- requests of this worker by number
local NOTHING = { bytes = 0, cached = {} } -- a request that adds no work

local function is_alive(pid)
    return ffi.C.kill(pid, 0) == 0 or ffi.errno() ~= NO_SUCH_PROCESS
end

local function short_name(text)
    return ngx.md5(text):sub(1, 16)
end

--- A place on the ring; CRC would put texts that differ in their end alone side by side.
local function place_of(text)
    return tonumber(ngx.md5(text):sub(1, 8), 16)
end

--- A node's capacity now: its weight, less while it comes back.
local function set_capacity(node, now)
    local share = 1
    if node.since then
        local passed = math.max(0, now - node.since) / settings.ramp_seconds -- a clock can go back
        share = math.min(1, RAMP_FROM + (1 - RAMP_FROM) * passed)
        if share >= 1 then
            node.since = nil
        end
    end
    node.capacity = node.weight * share
end

--- Give a pool its ring; weights do not matter to it, so most of the time it is the one that is there.
local function set_ring(pool, was)
    if settings.affinity ~= "session" then
        return
    end
    local list = {}
    for i, node in ipairs(pool.nodes) do
        list[i] = node.peer
    end
    pool.ring_of = table.concat(list, "\n")
    pool.ring = was and was.ring_of == pool.ring_of and was.ring or affinity.ring(list, place_of)
end

--- Drop what is kept of nodes that have left, or it would grow with every node there ever was.
local function forget(before, after)
    local stays = {}
    for _, peer in ipairs(after) do
        stays[peer] = true
    end
    for _, peer in ipairs(before) do
        if not stays[peer] then
            dict:delete(PICKS .. peer)
            dict:delete(HEARD .. peer)
        end
    end
end

--- Take a new list of nodes; one that was not served by before ramps up, unless this worker has just begun.
local function take(found)
    local now, before = ngx.now(), known and {}
    for name, pool in pairs(known and known.pools or {}) do
        for _, node in ipairs(pool.nodes) do
            local key = name .. " " .. node.peer
            if node.weight > 0 or not before[key] then -- a server can be there under two names, and serves under one
                before[key] = node
            end
        end
    end
    for name, pool in pairs(found.pools) do
        for _, node in ipairs(pool.nodes) do
            local was = before and before[name .. " " .. node.peer]
            if was and was.weight > 0 then
                node.since = was.since
            elseif before and settings.ramp_seconds > 0 then
                node.since = now
            end
            set_capacity(node, now)
        end
        set_ring(pool, known and known.pools[name])
    end
    if not known or table.concat(known.peers, "\n") ~= table.concat(found.peers, "\n") then
        forget(known and known.peers or {}, found.peers)
        books:use(found.peers)
    end
    known = found
end

--- A file's text, or so many bytes of it; nil and why if it cannot be read.
local function text_of(path, bytes)
    local file, problem = io.open(path, "rb")
    if not file then
        return nil, problem
    end
    local text = file:read(bytes or "*a")
    file:close()
    return text
end

--- What a file says, or nil and why it says nothing.
local function parse(text)
    local content, problem = cjson.decode(text)
    if not content then
        return nil, problem
    end
    return membership.read(content)
end

--- What to begin with where the file is no good: what it said before a reload, or what nginx's own balancer had.
local function parse_instead()
    local text = dict:get(GOOD)
    if text then
        return parse(text)
    end
    text = text_of(settings.upstream_file)
    return text and membership.read(membership.of_upstream_file(text))
end

--- Read the file if it has changed; what is wrong with it is said once, and the last good one stays.
local function refresh()
    local text, problem = text_of(settings.file)
    local state = text or problem
    if state == last_state then
        return
    end
    last_state = state
    local found, wrong
    if text then
        found, wrong = parse(text)
    end
    if found then
        dict:set(GOOD, text)
    else
        found = not known and parse_instead()
        if text or not found then -- it is missing on a host that has nginx's own balancer until now
            local what = (known or found) and "; the last good weights stay" or "; no node is known yet"
            ngx.log(ngx.ERR, "vllm-nginx-lb: ", settings.file, ": ", wrong or problem, what)
        end
    end
    if found then
        take(found)
    end
end

--- What is done every `refresh_seconds`: look for new weights, let nodes ramp, find what stands still and who has died.
local function tick(premature)
    if premature then
        return
    end
    refresh()
    local now = ngx.now()
    for _, pool in pairs(known and known.pools or {}) do
        for _, node in ipairs(pool.nodes) do
            if node.since then
                set_capacity(node, now)
            end
        end
    end
    books:look()
    for _, request in pairs(requests) do
        if request.answers and request.waits then
            local moved_at = math.max(request.sent, dict:get(HEARD .. request.peer) or 0)
            if now - moved_at > settings.stall_seconds then
                failures:failed(request.peer)
            end
        end
    end
end

--- Take the settings; for init_by_lua.
-- @tparam string wanted JSON: `file`, `upstream_file` (read until there is `file`), `refresh_seconds` (how often they
-- are looked at), `dict` (a shared dictionary's name), `stream_bytes` and `ingresses` (see choose.score),
-- `max_request_bytes`, `tries`, `ramp_seconds`, `stall_seconds`, `affinity` (off, session or prefix), `session_header`,
-- `affinity_factor` and `affinity_slack_bytes` (see affinity.within), `prefix_bytes`, `prefix_seconds`, `prefix_dict`
-- (another shared dictionary, which may forget), and `backoff` (see backoff.new)
function balancer.configure(wanted)
    settings = assert(cjson.decode(wanted))
end

--- Start in a worker: the weights are there before its first request; for init_worker_by_lua.
function balancer.start()
    math.randomseed(ngx.now() * 1000 + ngx.worker.pid()) -- or each worker would break ties alike
    dict, prefixes = ngx.shared[settings.dict], ngx.shared[settings.prefix_dict]
    failures = backoff.new(dict, settings.backoff)
    books = ledger.open(dict, ngx.worker.pid(), is_alive, short_name)
    refresh()
    assert(ngx.timer.every(settings.refresh_seconds, tick))
end

--- Let other requests have their turn.
local function pause()
    ngx.sleep(0)
end

--- A request's body, or what it begins with; from its file if it did not fit into the buffer.
local function body_of_request(bytes)
    ngx.req.read_body()
    local path = ngx.req.get_body_file()
    if path then
        return (text_of(path, bytes))
    end
    return ngx.req.get_body_data()
end

--- Answer as OpenAI does when there is no such model.
local function refuse_model(name)
    ngx.status = ngx.HTTP_NOT_FOUND
    ngx.header["Content-Type"] = "application/json"
    local message = "The model `" .. name .. "` does not exist."
    local problem = { message = message, type = "invalid_request_error", param = "model", code = "model_not_found" }
    ngx.say(cjson.encode { error = problem })
    return ngx.exit(ngx.status)
end

--- Answer with the models of all pools.
local function list_models()
    local models = {}
    for name in pairs(known.models) do
        models[#models + 1] = { id = name, object = "model", created = 0, owned_by = "vllm" }
    end
    table.sort(models, function(a, b)
        return a.id < b.id
    end)
    ngx.header["Content-Type"] = "application/json"
    ngx.say(cjson.encode { object = "list", data = models })
    return ngx.exit(ngx.HTTP_OK)
end

--- Note which pool a request is for, and by what it belongs together with others; for access_by_lua.
-- Where no pool names its models, all requests are for the one pool, or the one that nginx has found.
function balancer.route()
    local body
    local is_routed = (ngx.var.vllm_nginx_lb_route or "") ~= "" -- by its path, name or X-Model
    if not is_routed and known and next(known.models) then
        if ngx.var.uri == "/v1/models" then
            return list_models()
        end
        body = body_of_request()
        local name = body and model.of(body, pause)
        if name and not known.models[name] then
            return refuse_model(name)
        end
        ngx.ctx.vllm_nginx_lb_pool = known.models[name]
    end
    if settings.affinity == "session" then
        local session = ngx.req.get_headers()[settings.session_header]
        ngx.ctx.vllm_nginx_lb_place = type(session) == "string" and session ~= "" and place_of(session) or nil
    elseif settings.affinity == "prefix" then
        body = body or body_of_request(settings.prefix_bytes)
        ngx.ctx.vllm_nginx_lb_marks = body and prefix.marks(body, settings.prefix_bytes, ngx.md5_bin)
    end
end

--- Count a request out of the node that has it.
local function leave(request)
    if request.peer then
        books:add(request.peer, request.waits and -request.cost or 0, -1)
        request.peer, request.waits = nil, false
    end
end

--- The node a request belongs to, if it belongs to one and that may be taken.
local function home_of(request, usable)
    local place, nodes = ngx.ctx.vllm_nginx_lb_place, request.pool.nodes
    if not place or not request.pool.ring then
        return nil
    end
    return nodes[affinity.preferred(request.pool.ring, place, function(index)
        return nodes[index].capacity > 0 and usable(nodes[index])
    end)]
end

--- Whether a node can take one more request.
local function has_room(node)
    return node.max_conns == 0 or books:totals()[2 * node.slot + 1] < node.max_conns
end

--- Choose a node, and say why. When each has been tried one more try is left: it may have closed an idle connection.
local function pick(request)
    local nodes, totals = request.pool.nodes, books:totals()
    local trouble = failures:trouble()
    local function untried(node)
        return not request.tried[node.peer] and has_room(node)
    end
    local function usable(node)
        return untried(node) and (not trouble or failures:usable(node.peer))
    end
    local node, best = choose.best(nodes, totals, request, settings, usable, math.random)
    if not node then -- all have failed lately: the least loaded is the best guess
        node = choose.best(nodes, totals, request, settings, untried, math.random)
        if not node and not request.again then
            request.again = true
            node = choose.best(nodes, totals, request, settings, has_room, math.random)
        end
        return node, "last resort"
    end
    local home = home_of(request, usable)
    if not home then
        return node, request.cached[node.peer] and "least work, cached prefix" or "least work"
    end
    local score = choose.score(home, totals, request, settings)
    if affinity.within(score, best, settings.affinity_factor, settings.affinity_slack_bytes / home.capacity) then
        return home, "affinity"
    end
    return node, "least work, off its affinity"
end

--- Whether there is a node for a request that it was not tried on.
local function has_untried(request)
    for _, node in ipairs(request.pool.nodes) do
        if node.capacity > 0 and not request.tried[node.peer] and has_room(node) then
            return true
        end
    end
    return false
end

--- Let a request be tried once more if there is a node for that; else the answer of this one is the client's.
local function allow_another_try(request)
    if request.tries > 1 and (not request.again or has_untried(request)) then
        request.tries = request.tries - 1
        peers.set_more_tries(1)
    end
end

--- Begin to follow a request.
local function begin(pool_name)
    local length = tonumber(ngx.var.content_length) or tonumber(ngx.var.request_length) or 0
    local marks = ngx.ctx.vllm_nginx_lb_marks
    local request = {
        bytes = math.min(length, settings.max_request_bytes),
        cached = marks and prefix.cached(prefixes, marks) or NOTHING.cached,
        tried = {},
        tries = settings.tries,
    }
    latest = latest + 1
    requests[latest] = request
    ngx.ctx.vllm_nginx_lb = request
    ngx.var.vllm_nginx_lb_request, ngx.var.vllm_nginx_lb_pool_name = latest, pool_name
    return request
end

--- Choose a node for a request, or another one after a failure; for balancer_by_lua.
-- @tparam string pool_name of which nodes, unless its model says otherwise
function balancer.balance(pool_name)
    pool_name = ngx.ctx.vllm_nginx_lb_pool or pool_name
    local pool = known and known.pools[pool_name]
    if not pool then
        ngx.log(ngx.ERR, "vllm-nginx-lb: no nodes are known of ", pool_name, "; see ", settings.file)
        return ngx.exit(NO_LIVE_NODE)
    end
    local request = ngx.ctx.vllm_nginx_lb or begin(pool_name)
    request.pool = pool -- as it is now: places in an older list are no places in these totals
    if request.peer then -- the try before has failed
        failures:failed(request.peer)
        leave(request)
    end
    local node, why, done, problem
    repeat
        node, why = pick(request)
        if not node then
            return ngx.exit(NO_LIVE_NODE)
        end
        request.tried[node.peer] = true
        done, problem = peers.set_current_peer(node.host, node.port)
        if not done then
            ngx.log(ngx.ERR, "vllm-nginx-lb: node ", node.name, ": ", problem)
        end
    until done
    allow_another_try(request)
    request.peer, request.waits, request.answers, request.sent = node.peer, true, false, ngx.now()
    request.cost = choose.cost(request, node)
    failures:taken(node.peer)
    books:add(node.peer, request.cost, 1)
    if ngx.ctx.vllm_nginx_lb_marks then
        prefix.note(prefixes, ngx.ctx.vllm_nginx_lb_marks, node.peer, settings.prefix_seconds)
    end
    dict:incr(PICKS .. node.peer, 1, 0)
    ngx.var.vllm_nginx_lb_choice = why
end

--- See the headers of an answer, which vLLM sends at once; for header_filter_by_lua.
function balancer.headers()
    local request = ngx.ctx.vllm_nginx_lb
    if request then
        request.answers = true
    end
end

--- See pieces of an answer: with the first one the prompt is done; for body_filter_by_lua.
function balancer.body()
    local request = ngx.ctx.vllm_nginx_lb
    if request and request.waits and ngx.arg[1] ~= "" then
        request.waits = false
        ngx.var.vllm_nginx_lb_first_byte_time = ("%.3f"):format(ngx.now() - ngx.req.start_time())
        books:add(request.peer, -request.cost, 0)
        if ngx.status < ngx.HTTP_INTERNAL_SERVER_ERROR then
            failures:succeeded(request.peer)
            dict:set(HEARD .. request.peer, ngx.now(), settings.stall_seconds) -- it says nothing after that
        end
    end
end

--- Count a request out, however it ended; for log_by_lua.
function balancer.finish()
    local number = tonumber(ngx.var.vllm_nginx_lb_request)
    local request = number and requests[number]
    if not request then
        return
    end
    requests[number] = nil
    local answered = tonumber((ngx.var.upstream_status or ""):match "(%d+)$") -- "-": the client has gone meanwhile
    if request.peer and answered and FAULTS[answered] then
        failures:failed(request.peer)
    end
    leave(request)
end

--- What is known of every node, in the order of the file.
-- @treturn table rows as status.prometheus takes them, with `address` besides
function balancer.nodes()
    local rows, totals = {}, books:totals()
    for name, pool in pairs(known and known.pools or {}) do
        for _, node in ipairs(pool.nodes) do
            rows[#rows + 1] = {
                pool = name,
                node = node.name,
                address = node.peer,
                weight = node.weight,
                capacity = node.capacity,
                pending_bytes = totals[2 * node.slot],
                streams = totals[2 * node.slot + 1],
                score = node.capacity > 0 and choose.score(node, totals, NOTHING, settings) or nil,
                backoff_seconds = failures:seconds_left(node.peer),
                picks = dict:get(PICKS .. node.peer) or 0,
            }
        end
    end
    return rows
end

--- Answer with that, as JSON or for Prometheus; for content_by_lua.
function balancer.say_nodes(as_metrics)
    local rows = balancer.nodes()
    if as_metrics then
        ngx.header["Content-Type"] = "text/plain; version=0.0.4"
        ngx.print(status.prometheus(rows))
    else
        ngx.header["Content-Type"] = "application/json"
        local nodes = #rows > 0 and cjson.encode(rows) or "[]"
        ngx.say('{"generation":"', balancer.generation(), '","nodes":', nodes, "}")
    end
end

--- The generation of the weights this worker uses.
function balancer.generation()
    return known and known.generation or "seed"
end

return balancer
