--- Every setting of the Lua code, declared once. settings.lua reads them.
-- The names are the keys of the JSON that init_by_lua passes in. A key that is left out has the default.
--
-- A setting is declared by its name, its kind (see settings.lua), its default and what its kind needs: numbers have
-- `low`, the least value allowed, and may have a `unit`; texts may have a `pattern`; a word has its `choices`; a group
-- has its `members`. A default that is a function is called with the other settings of its group.
return {
    -- The weights that vllm-nginx-lb publishes. Until that file exists, the upstream file of the balancer `upstream`.
    { name = "file", kind = "text", default = "/etc/nginx/vllm-nginx-lb/weights.json" },
    { name = "upstream_file", kind = "text", default = "/etc/nginx/vllm-nginx-lb/upstream.conf" },
    -- How often the file is read, slow start raises weights, and stalled nodes and dead workers are searched.
    { name = "refresh_seconds", kind = "number", unit = "s", low = 0.001, default = 0.5 },
    -- The shared dictionary for the counts of all workers.
    { name = "dict", kind = "text", default = "vllm_nginx_lb" },
    -- The work of an open stream, as bytes of prompt.
    { name = "stream_bytes", kind = "number", unit = "bytes", low = 0, default = 1000 },
    -- How fast a node computes prompts, as long as nothing is learned from streamed answers.
    { name = "prefill_bytes_per_second", kind = "number", unit = "bytes", low = 1, default = 32 * 1024 },
    -- The readings of the nodes' KV caches, and the share of a cache beyond which other nodes come first; 0: never.
    { name = "readings_file", kind = "text", default = "/var/lib/vllm-nginx-lb/readings.json" },
    { name = "kv_share", kind = "number", low = 0, default = 0.9 },
    -- How many ingresses send requests to the same nodes.
    { name = "ingresses", kind = "integer", low = 1, default = 1 },
    -- The most nodes that one request may reach.
    { name = "tries", kind = "integer", low = 1, default = 3 },
    -- How long slow start lasts; 0: a returning node has its full weight at once.
    { name = "ramp_seconds", kind = "number", unit = "s", low = 0, default = 30 },
    -- A node that has sent headers and then no output for so long is stalled. A node may say that it is full for so
    -- long.
    { name = "stall_seconds", kind = "number", unit = "s", low = 0.001, default = 60 },
    -- How long a client may take to send a body; 0: as long as it likes.
    { name = "upload_seconds", kind = "number", unit = "s", low = 0, default = 300 },
    -- How many requests with bodies of 1 MB or more a client may have open; 0: neither these nor their bytes
    -- have a bound.
    { name = "large_requests", kind = "integer", low = 0, default = 128 },
    -- The largest body, the largest that nginx keeps in memory, and the size of the place for those that it writes to
    -- files; 0: that place has no bound.
    { name = "max_body_bytes", kind = "integer", unit = "bytes", low = 1, default = 64 * 1024 * 1024 },
    { name = "body_buffer_bytes", kind = "integer", unit = "bytes", low = 1, default = 1024 * 1024 },
    { name = "body_place_bytes", kind = "integer", unit = "bytes", low = 0, default = 1024 * 1024 * 1024 },
    -- How many long bodies a worker looks into at once, how many may wait for that, and for how long.
    { name = "bodies_at_once", kind = "integer", low = 1, default = 4 },
    { name = "bodies_waiting", kind = "integer", low = 0, default = 100 },
    { name = "body_wait_seconds", kind = "number", unit = "s", low = 0.001, default = 30 },
    -- How a node is found that has a prompt cached.
    { name = "affinity", kind = "word", choices = { "off", "session", "prefix" }, default = "prefix" },
    { name = "session_header", kind = "text", pattern = "^[%w-]+$", default = "X-Session-Id" },
    -- The most work that a session's node may have: the least work of all nodes times the factor, plus the slack.
    { name = "affinity_factor", kind = "number", low = 1, default = 2 },
    { name = "affinity_slack_bytes", kind = "number", unit = "bytes", low = 0, default = 8192 },
    -- The shared dictionary of the prefix marks.
    { name = "prefix_dict", kind = "text", default = "vllm_nginx_lb_prefixes" },
    {
        name = "backoff", -- of ejection
        kind = "group",
        members = {
            -- The ejection time after a node's first failure; each further one doubles it. 0: no node is ever ejected.
            { name = "first", kind = "number", unit = "s", low = 0, default = 0.5 },
            { name = "longest", kind = "number", unit = "s", low = 0, default = 10 },
            -- A failure is forgotten after so long.
            {
                name = "memory",
                kind = "number",
                unit = "s",
                low = 0.001,
                default = function(group)
                    return math.max(60, 2 * group.longest)
                end,
            },
            -- How long the trial of a node may take. Then another request may be its trial.
            { name = "probe", kind = "number", unit = "s", low = 0.001, default = 10 },
            -- How much of a pool may be ejected, unless it cannot be reached.
            { name = "most_percent", kind = "number", unit = "percent", low = 0, default = 50 },
        },
    },
    {
        name = "outlier", -- what a node is ejected for whose answers are worse than the others'
        kind = "group",
        members = {
            -- How many bad answers in a row eject a node; 0: they eject none.
            { name = "row", kind = "integer", low = 0, default = 5 },
            -- By how much the share of errors is larger than the others', over which time; 1 or more ejects no node.
            { name = "error_ratio", kind = "number", low = 0.01, default = 0.3 },
            { name = "interval_seconds", kind = "number", unit = "s", low = 1, default = 10 },
            -- How many clients in a row leave without output, each after at least so long.
            { name = "leavers", kind = "integer", low = 1, default = 3 },
            { name = "leaver_seconds", kind = "number", unit = "s", low = 0.001, default = 5 },
        },
    },
}
