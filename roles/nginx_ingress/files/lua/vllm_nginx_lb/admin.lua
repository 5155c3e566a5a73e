--- The status server's answers about the balancer `work`. Each function is a content_by_lua.

local cjson = require "cjson.safe"
local node_report = require "vllm_nginx_lb.node_report"
local worker = require "vllm_nginx_lb.worker"

local admin = {}

local function rows()
    return node_report.rows(worker.weights:pools(), worker)
end

--- /generation: the generation of the weights in use, and this worker's process id. The script waits for a generation.
function admin.generation()
    ngx.say(worker.weights:generation(), " ", ngx.worker.pid())
end

--- Answer rows of nodes as JSON.
local function say_nodes(found)
    ngx.header["Content-Type"] = "application/json"
    local nodes = #found > 0 and cjson.encode(found) or "[]"
    ngx.say('{"generation":"', worker.weights:generation(), '","nodes":', nodes, "}")
end

--- /work: the state of each node, as JSON.
function admin.work()
    say_nodes(rows())
end

--- /work/ejected: the nodes that are ejected now, as JSON.
function admin.ejected()
    say_nodes(node_report.ejected(worker.weights:pools(), worker.ejection))
end

--- /work/metrics: the state of each node for Prometheus, the writes that did not fit into shared memory, the bytes of a
-- token, and requests that lack a key, TLS or a known name.
function admin.metrics()
    local dicts = {}
    for i, dict in ipairs(worker.dicts) do
        dicts[i] = { dict = dict.name, full = dict:count_full() }
    end
    ngx.header["Content-Type"] = "text/plain; version=0.0.4"
    local rates = worker.tokens:rows(worker.weights:pools(), worker.weights:models())
    ngx.print(node_report.prometheus(rows(), dicts, rates), worker.unfit:prometheus())
end

return admin
