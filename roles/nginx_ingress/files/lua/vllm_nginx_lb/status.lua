--- What the balancer knows of its nodes, as Prometheus reads it. Pure.

local status = {}

-- Of each node: the key of its row, the metric's name without the common part, its type and its help.
local METRICS = {
    { "weight", "weight", "gauge", "Weight by the balancer's script, 0 to 100." },
    { "capacity", "capacity", "gauge", "Weight in use now: less while a node comes back." },
    { "pending_bytes", "pending_bytes", "gauge", "Bytes of prompts without a first byte of their answer." },
    { "streams", "streams", "gauge", "Open requests." },
    { "score", "score", "gauge", "Outstanding work per capacity: the next request goes where it is least." },
    { "backoff_seconds", "backoff_seconds", "gauge", "For how long it is left out because it failed." },
    { "picks", "picks_total", "counter", "Requests it was chosen for." },
}

--- The text of /work/metrics.
-- @tparam table rows each with `pool`, `node` and what METRICS names
function status.prometheus(rows)
    local lines = {}
    for _, metric in ipairs(METRICS) do
        local key, name, kind, help = unpack(metric)
        name = "vllm_nginx_lb_work_" .. name
        lines[#lines + 1] = "# HELP " .. name .. " " .. help
        lines[#lines + 1] = "# TYPE " .. name .. " " .. kind
        for _, row in ipairs(rows) do
            if row[key] then
                lines[#lines + 1] = ('%s{pool="%s",node="%s"} %.17g'):format(name, row.pool, row.node, row[key])
            end
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

return status
