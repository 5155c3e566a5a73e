--- Measure a choice of the balancer `work`, for benchmarks/choice.py: a content_by_lua_file. Arguments of the URL:
-- `workers`; `max_conns`; `out`, `full`, `kv_full`: how many nodes are ejected, have as many requests as they may, or
-- have a full KV cache, of which nginx knows; `busy`: 1, or 0 and all nodes are alike; `marks`, how many prefix marks a
-- prompt has, and `shared`, how many of these all prompts have. A choice begins with the look-up of the marks. Answers
-- with the processor time of a choice in µs: the mean of the quickest round, because other processes slow down the
-- others.

local choice = require "vllm_nginx_lb.choice"
local clock = require "vllm_nginx_lb.clock" -- declares clock_gettime
local ejection = require "vllm_nginx_lb.ejection"
local in_flight = require "vllm_nginx_lb.in_flight"
local node_counts = require "vllm_nginx_lb.node_counts"
local pending = require "vllm_nginx_lb.pending"
local request = require "vllm_nginx_lb.request"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local worker = require "vllm_nginx_lb.worker"

local ffi = require "ffi"

local GOOD = { status = 200, was_sent = true, has_answer = true } -- what has become of each request
local PROCESSOR = 2 -- CLOCK_PROCESS_CPUTIME_ID of Linux
local ROUNDS, CHOICES = 20, 300
local NODES_OF_A_WORKER = 64 -- where another worker has work at most

local read = ffi.new "struct vllm_nginx_lb_time"

local function processor_seconds()
    ffi.C.clock_gettime(PROCESSOR, read)
    return tonumber(read.seconds) + tonumber(read.nanoseconds) / 1e9
end

local wanted = {}
for name, value in pairs(ngx.req.get_uri_args()) do
    wanted[name] = tonumber(value)
end
ngx.shared.measured:flush_all()
local dict = shared_dict.open(ngx.shared.measured, { name = "measured", advice = "", log = error })
local pool = worker.weights:pools().llm_cluster
local addresses = {}
for i, node in ipairs(pool.nodes) do
    addresses[i], node.max_conns = node.peer, wanted.max_conns
end

local function always()
    return true
end

local function open(pid)
    local work = in_flight.open(dict, pid, always, function(text)
        return ngx.md5(text):sub(1, 16)
    end)
    work:use_nodes(addresses)
    return work
end

--- The work of another worker changes at one node.
local function change(work)
    local peer = addresses[math.random(math.min(#addresses, NODES_OF_A_WORKER))]
    work:add(peer, math.random(1000), 0)
end

local own, others = open(0), {}
for i = 1, wanted.workers - 1 do
    others[i] = open(i)
    if wanted.busy == 1 then
        for _ = 1, NODES_OF_A_WORKER do
            change(others[i])
        end
    end
end
local parts = {}
for name, part in pairs(worker.requests.parts) do
    parts[name] = part
end
parts.in_flight, parts.pending = own, pending.new(own)
local times = { first = 3600, longest = 3600, memory = 7200, probe = 10, most_percent = 100 }
parts.ejection = ejection.new(dict, times, clock.now, node_counts.new(dict), function() end)
parts.ejection:use_nodes(addresses)
parts.choice = choice.new {
    settings = worker.settings,
    ejection = parts.ejection,
    affinity = worker.affinity,
    full = parts.full,
    counts = parts.counts,
    random = math.random,
}
parts.peers = { set_current_peer = always, set_more_tries = always }
local requests = request.follow(parts)
for i = 1, #addresses do
    if i <= wanted.out then
        parts.ejection:failed(addresses[i], "unreachable", pool)
    end
    pool.nodes[i].kv_left = i <= wanted.kv_full and 0 or 1e9
    if i <= wanted.full then
        own:add(addresses[i], 0, wanted.max_conns)
    elseif wanted.busy == 1 then
        own:add(addresses[i], math.random(10000), 1)
    end
end

--- The next prompt's marks, and where each ends.
local own_marks = 0
local function new_marks()
    local marks, ends = {}, {}
    for i = 1, wanted.marks do
        own_marks = own_marks + 1
        marks[i] = ngx.md5_bin(i <= wanted.shared and "shared " .. i or "own " .. own_marks)
        ends[i] = 1024 * i
    end
    return marks, ends
end

local least = math.huge
for _ = 1, ROUNDS do
    local seconds = 0
    for i = 1, CHOICES do
        if wanted.busy == 1 and #others > 0 then
            change(others[i % #others + 1])
        end
        local it = requests.accept()
        it.client, it.origin, it.marks, it.mark_ends = "somebody", 0, new_marks()
        local from = processor_seconds()
        requests:begin(it, 1000, pool)
        local why = requests:send(it, pool)
        seconds = seconds + processor_seconds() - from
        assert(why, "no node")
        requests:see_piece(it, "{}", true)
        requests:finish(it.number, GOOD)
    end
    least = math.min(least, seconds / CHOICES)
end
ngx.say(("%.1f"):format(1e6 * least))
