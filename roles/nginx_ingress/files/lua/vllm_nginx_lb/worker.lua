--- One worker process of nginx: the objects that it makes at its start, and the tasks that it runs twice a second.
-- Only this table is global to a worker. It hands the other modules the objects that they need.

local affinity = require "vllm_nginx_lb.affinity.wanted"
local body_queue = require "vllm_nginx_lb.body_queue"
local cache_clock = require "vllm_nginx_lb.cache_clock"
local choice = require "vllm_nginx_lb.choice"
local clock = require "vllm_nginx_lb.clock"
local ejection = require "vllm_nginx_lb.ejection"
local error_share = require "vllm_nginx_lb.error_share"
local full_nodes = require "vllm_nginx_lb.full_nodes"
local held_work = require "vllm_nginx_lb.held_work"
local free_places = require "vllm_nginx_lb.free_places"
local in_flight = require "vllm_nginx_lb.in_flight"
local large_bodies = require "vllm_nginx_lb.large_bodies"
local node_counts = require "vllm_nginx_lb.node_counts"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local outlier = require "vllm_nginx_lb.outlier"
local pending = require "vllm_nginx_lb.pending"
local prefill = require "vllm_nginx_lb.prefill"
local processes = require "vllm_nginx_lb.processes"
local progress = require "vllm_nginx_lb.progress"
local readings = require "vllm_nginx_lb.readings"
local request = require "vllm_nginx_lb.request"
local settings = require "vllm_nginx_lb.settings"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local tokens = require "vllm_nginx_lb.tokens"
local unfit_requests = require "vllm_nginx_lb.unfit_requests"
local verdict = require "vllm_nginx_lb.verdict"
local weights_file = require "vllm_nginx_lb.weights_file"

local peers = require "ngx.balancer"
local semaphore = require "ngx.semaphore"

---@class Worker
---@field settings table see settings.lua
---@field weights WeightsFile
---@field readings Readings
---@field open OpenPrompts
---@field tokens Tokens
---@field in_flight InFlight
---@field ejection Ejection
---@field counts NodeCounts
---@field prefill Prefill
---@field held HeldWork
---@field pending Pending
---@field error_share ErrorShare
---@field affinity Affinity
---@field cache_clock CacheClock
---@field requests Requests
---@field free_places FreePlaces
---@field bodies BodyQueue
---@field large_bodies LargeBodies
---@field unfit UnfitRequests
---@field dicts SharedDict[] all of them
local worker = {}

--- A name of 16 characters for a text.
local function short_name(text)
    return ngx.md5(text):sub(1, 16)
end

local function log_error(text)
    ngx.log(ngx.ERR, "vllm-nginx-lb: ", text)
end

local function open_dict(name, variable, may_forget)
    local advice = "raise " .. variable
    local options = { name = name, may_forget = may_forget, advice = advice, log = log_error }
    return shared_dict.open(ngx.shared[name], options)
end

--- Tell the other modules the new list of nodes.
local function use_nodes(found, former)
    for name, pool in pairs(found.pools) do
        worker.affinity:on_nodes(pool, former and former.pools[name])
    end
    local before = former and former.peers or {}
    if not former or table.concat(before, "\n") ~= table.concat(found.peers, "\n") then
        worker.counts:keep_only(found.peers)
        worker.ejection:use_nodes(found.peers)
        worker.in_flight:use_nodes(found.peers)
        worker.readings:keep_only(found.peers)
    end
end

--- The tasks of every `refresh_seconds`.
local function tick(is_shutting_down)
    worker.held:release(is_shutting_down)
    if is_shutting_down then
        worker.pending:finish_all()
        return
    end
    worker.pending:finish_due(clock.now())
    worker.weights:refresh()
    worker.weights:go_on()
    worker.readings:refresh(worker.weights:pools())
    worker.in_flight:find_rows()
    worker.requests:eject_stalled()
    worker.error_share:compare(worker.weights:pools(), worker.weights:peers())
end

--- Make the objects that follow requests, and judge nodes by what becomes of them.
local function follow_requests(dict)
    local parts = {
        settings = worker.settings,
        dict = dict,
        in_flight = worker.in_flight,
        open = worker.open,
        tokens = worker.tokens,
        ejection = worker.ejection,
        counts = worker.counts,
        prefill = worker.prefill,
        held = worker.held,
        affinity = worker.affinity,
        cache_clock = worker.cache_clock,
        random = math.random,
        peers = peers,
        now = clock.now,
        log = log_error,
    }
    worker.pending = pending.new(worker.in_flight, progress.new(worker.in_flight, parts.prefill))
    parts.pending = worker.pending
    worker.error_share = error_share.new(parts)
    parts.full = full_nodes.new(clock.now)
    parts.choice = choice.new(parts)
    parts.outlier = outlier.new(parts)
    parts.verdicts = verdict.new(parts)
    worker.requests = request.follow(parts)
end

--- Read the settings, before there are workers.
---@param json string an object of the settings that differ from their defaults (settings.lua)
function worker.configure(json)
    local wanted, problems = settings.read(json)
    if not wanted then
        error("vllm-nginx-lb: settings of init_by_lua: " .. problems, 0)
    end
    worker.settings = wanted
end

--- Start in a worker. The weights are read before its first request.
function worker.start()
    local wanted = worker.settings
    math.randomseed(ngx.now() * 1000 + ngx.worker.pid()) -- so that workers break ties differently
    local dict = open_dict(wanted.dict, "nginx_ingress_work_memory_mib", false)
    local prefixes = open_dict(wanted.prefix_dict, "nginx_ingress_work_prefix_memory_mib", true)
    worker.dicts = { dict, prefixes }
    worker.counts = node_counts.new(dict)
    worker.cache_clock = cache_clock.new(dict, clock.now)
    worker.unfit = unfit_requests.new(dict)
    worker.ejection = ejection.new(dict, wanted.backoff, clock.now, worker.counts, log_error)
    worker.in_flight = in_flight.open(dict, ngx.worker.pid(), processes.is_alive, short_name, function(pid)
        worker.large_bodies:forget(pid)
    end)
    worker.prefill = prefill.new(dict, wanted.prefill_bytes_per_second)
    worker.held = held_work.new(worker.in_flight, worker.prefill, wanted.stream_bytes, clock.now)
    worker.free_places = free_places.new { workers = ngx.worker.count(), now = clock.now }
    worker.bodies = body_queue.new(wanted, semaphore.new)
    worker.large_bodies = large_bodies.new {
        settings = wanted,
        dict = dict,
        pid = ngx.worker.pid(),
        other_pids = function()
            return worker.in_flight:other_pids()
        end,
    }
    worker.affinity = affinity.new(wanted, worker.counts, prefixes, worker.cache_clock)
    worker.open = open_prompts.new(dict)
    worker.tokens = tokens.new(dict, prefixes)
    worker.readings = readings.new {
        settings = wanted,
        open = worker.open,
        now = clock.now,
        wall_now = ngx.now,
        log = log_error,
    }
    follow_requests(dict)
    worker.weights = weights_file.new {
        path = wanted.file,
        upstream_path = wanted.upstream_file,
        dict = dict,
        slow_start_seconds = wanted.ramp_seconds,
        now = clock.now,
        log = log_error,
        on_change = use_nodes,
    }
    worker.weights:refresh()
    worker.readings:refresh(worker.weights:pools())
    assert(ngx.timer.every(wanted.refresh_seconds, tick))
end

return worker
