--- The state of each node, as rows and in Prometheus' text format. Pure.

local ejection = require "vllm_nginx_lb.ejection"
local least_work = require "vllm_nginx_lb.least_work"
local outcome = require "vllm_nginx_lb.outcome"

local node_report = {}

local NO_REQUEST = { bytes = 0, cached = {} } -- adds no work
-- The metrics of a node: the key in its row, the name without the common part, the type, the help.
local METRICS = {
    { "weight", "weight", "gauge", "Weight by the balancer's script, 0 to 100." },
    { "capacity", "capacity", "gauge", "Effective weight: less than the weight while a node is in slow start." },
    { "pending_bytes", "pending_bytes", "gauge", "Bytes of prompts that are probably not computed yet." },
    { "streams", "streams", "gauge", "Open requests." },
    { "score", "score", "gauge", "Outstanding work per effective weight: the next request goes where it is least." },
    { "backoff_seconds", "backoff_seconds", "gauge", "Seconds for which it is still ejected because it failed." },
    { "picks", "picks_total", "counter", "Requests it was chosen for." },
    { "passed_over", "kv_full_total", "counter", "Requests that it did not get because its KV cache had no room." },
    { "prefill_speed", "prefill_bytes_per_second", "gauge", "Bytes of prompts it computes in a second, learned." },
    { "first_outputs", "first_outputs_total", "counter", "Streams that have begun with good output." },
    { "predicted_seconds", "first_output_predicted_seconds_total", "counter", "Predicted seconds until these began." },
    { "seen_seconds", "first_output_seconds_total", "counter", "Seconds until these began." },
}
-- The metrics of a node that have one value for each of some labels, in the same columns, with the label's name.
local LABELLED_METRICS = {
    { "answers", "answers_total", "counter", "What became of the tries it was chosen for.", "status" },
    { "ejections", "ejections_total", "counter", "How often it was ejected.", "cause" },
}
-- The metrics of a shared dictionary, in the same columns.
local DICT_METRICS = {
    { "full", "dict_full_total", "counter", "Writes that failed or dropped something else for lack of shared memory." },
}

--- The numbers of a node by label, without those that are 0.
local function by_label(labels, number_of)
    local found = {}
    for _, label in ipairs(labels) do
        local number = number_of(label)
        found[label] = number > 0 and number or nil
    end
    return found
end

--- What has become of the tries at a node, and of the node.
local function history(peer, counts)
    local answers = by_label(outcome.LABELS, function(label)
        return counts:times_answered(peer, label)
    end)
    local ejections = by_label(ejection.CAUSES, function(cause)
        return counts:times_ejected(peer, cause)
    end)
    return answers, ejections
end

--- The rows of all nodes, pool by pool in the order of the file.
---@param pools table by name, each with `nodes`
---@param parts table `settings`, `in_flight`, `ejection`, `counts`, `prefill`
---@return table[] rows `pool`, `node`, `address`, and the keys in METRICS; no `score` for a node without weight, and no
--- `prefill_speed` before a stream has begun; `answers` and `ejections` by label; `ejected_for`, the cause, until an
--- answer has shown that the node is well
function node_report.rows(pools, parts)
    local rows, totals = {}, parts.in_flight:totals()
    for name, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            local serves = node.effective_weight > 0
            local answers, ejections = history(node.peer, parts.counts)
            local first_outputs, predicted, seen = parts.counts:first_outputs(node.peer)
            rows[#rows + 1] = {
                pool = name,
                node = node.name,
                address = node.peer,
                weight = node.weight,
                capacity = node.effective_weight,
                pending_bytes = totals[2 * node.slot],
                streams = totals[2 * node.slot + 1],
                score = serves and least_work.score(node, totals, NO_REQUEST, parts.settings) or nil,
                backoff_seconds = parts.ejection:seconds_left(node.peer),
                ejected_for = parts.ejection:cause(node.peer),
                picks = parts.counts:times_chosen(node.peer),
                passed_over = parts.counts:times_passed_over(node.peer),
                prefill_speed = parts.prefill:speed(node.peer),
                first_outputs = first_outputs,
                predicted_seconds = predicted,
                seen_seconds = seen,
                answers = answers,
                ejections = ejections,
            }
        end
    end
    return rows
end

--- The nodes that are ejected now. This reads little for each node, because status pages ask for it at each tick.
---@param pools table by name, each with `nodes`
---@param ejections Ejection
---@return table[] rows `pool`, `node`, `cause`, and `seconds` until its trial
function node_report.ejected(pools, ejections)
    local rows = {}
    for name, pool in pairs(pools) do
        for _, node in ipairs(pool.nodes) do
            local seconds = ejections:seconds_left(node.peer)
            if seconds > 0 then
                local cause = ejections:cause(node.peer)
                rows[#rows + 1] = { pool = name, node = node.name, cause = cause, seconds = seconds }
            end
        end
    end
    return rows
end

--- Add the lines of a metric's value: one for a number, and one for each label of a table of numbers.
local function add_values(lines, name, labels, value, label_name)
    if type(value) == "table" then
        for label, number in pairs(value) do
            add_values(lines, name, ('%s,%s="%s"'):format(labels, label_name, label), number)
        end
    elseif value then
        lines[#lines + 1] = ("%s{%s} %.17g"):format(name, labels, value)
    end
end

--- Add the lines of some metrics to a list.
local function add_metrics(lines, metrics, rows, labels_of)
    for _, metric in ipairs(metrics) do
        local key, name, kind, help, label_name = unpack(metric)
        name = "vllm_nginx_lb_work_" .. name
        lines[#lines + 1] = "# HELP " .. name .. " " .. help
        lines[#lines + 1] = "# TYPE " .. name .. " " .. kind
        for _, row in ipairs(rows) do
            add_values(lines, name, labels_of(row), row[key], label_name)
        end
    end
end

--- The text of /work/metrics.
---@param rows table[] see node_report.rows
---@param dicts table[] of the shared dictionaries: `dict`, the name, and `full`, how many writes did not fit
---@return string
function node_report.prometheus(rows, dicts)
    local lines = {}
    local function labels_of_node(row)
        return ('pool="%s",node="%s"'):format(row.pool, row.node)
    end
    add_metrics(lines, METRICS, rows, labels_of_node)
    add_metrics(lines, LABELLED_METRICS, rows, labels_of_node)
    add_metrics(lines, DICT_METRICS, dicts, function(row)
        return ('dict="%s"'):format(row.dict)
    end)
    return table.concat(lines, "\n") .. "\n"
end

return node_report
