--- The rooms of the Lua, lowest first: a module requires only what stands above it here.

local LAYERS = {
    { "answer_guard", "body_queue", "clock", "declared_settings", "files", "free_places", "full_nodes" },
    { "processes", "prompt_payload", "readings_format", "request_record", "time_slots" },
    { "tokens", "usage" },
    { "former_key", "json_string", "meter", "model", "nginx_hash", "node_keys", "outcome", "output", "work_row" },
    { "answer", "ejection_limit", "ending", "prefill", "prompt_cells", "settings", "shared_dict", "slow_start" },
    { "weights_format", "least_work", "in_flight", "ejection_records", "json_walk", "mark_shares", "node_counts" },
    { "cache_clock", "open_prompts", "progress" },
    { "kv_room", "large_bodies", "pending", "prompt_marks", "request_body", "router" },
    { "unfit_requests", "weights_file" },
    { "ejection", "error_share", "held_work", "outlier", "readings", "stall", "verdict" },
    { "affinity.off", "affinity.session", "affinity.prefix", "choice", "node_report" },
    { "affinity.wanted", "place" },
    { "request" },
    { "worker" },
    { "admin" },
    { "phases" },
}
local DIRECTORY = "roles/nginx_ingress/files/lua/vllm_nginx_lb/"
local LONGEST = 200 -- lines

--- The lines of a module's file.
local function lines_of(name)
    local lines = {}
    for line in assert(io.lines(DIRECTORY .. name:gsub("%.", "/") .. ".lua")) do
        lines[#lines + 1] = line
    end
    return lines
end

describe("the rooms", function()
    local level_of = {}
    for level, names in ipairs(LAYERS) do
        for _, name in ipairs(names) do
            level_of[name] = level
        end
    end

    it("are all listed", function()
        local found = {}
        for path in io.popen("cd " .. DIRECTORY .. " && find . -name '*.lua'"):lines() do
            local name = path:sub(3, -5):gsub("/", ".")
            found[#found + 1] = name
            assert.is_truthy(level_of[name], name)
        end
        assert.is_true(#found >= 20)
    end)

    for name, level in pairs(level_of) do
        it("require only what is below: " .. name, function()
            for _, line in ipairs(lines_of(name)) do
                local wanted = line:match 'require%s*%(?%s*"vllm_nginx_lb%.([%w_.]+)"'
                assert.is_true(wanted == nil or level_of[wanted] < level, wanted)
            end
        end)

        it("are short: " .. name, function()
            assert.is_true(#lines_of(name) <= LONGEST)
        end)
    end
end)
