local settings = require "vllm_nginx_lb.settings"

describe("settings", function()
    it("have their defaults", function()
        local found = settings.read "{}"
        assert.equal("/etc/nginx/vllm-nginx-lb/weights.json", found.file)
        assert.equal("prefix", found.affinity)
        assert.same({ first = 0.5, longest = 10, memory = 60, probe = 10, most_percent = 50 }, found.backoff)
        assert.same(
            { row = 5, error_ratio = 0.3, interval_seconds = 10, leavers = 3, leaver_seconds = 5 },
            found.outlier
        )
    end)

    it("are as they are given, and otherwise have their defaults", function()
        local found = settings.read '{"tries": 5, "affinity": "session", "backoff": {"first": 2}}'
        assert.same({ 5, "session", 2, 10, 1000 }, {
            found.tries,
            found.affinity,
            found.backoff.first,
            found.backoff.longest,
            found.stream_bytes,
        })
    end)

    it("remember failures for longer than the longest ejection", function()
        assert.equal(80, settings.of({ backoff = { longest = 40 } }).backoff.memory)
        assert.equal(60, settings.of({ backoff = { longest = 20 } }).backoff.memory)
    end)

    it("have the defaults of the role", function()
        local role, text = {}, assert(io.open "roles/nginx_ingress/defaults/main.yml"):read "*a"
        for name, value in text:gmatch "\n(nginx_ingress_[%w_]+): ([^\n]+)" do
            role[name] = tonumber(value) or value:gsub('"', "")
        end
        local found = settings.of {}
        local pairs_of = {
            { "next_upstream_tries", found.tries },
            { "work_stream_bytes", found.stream_bytes },
            { "work_prefill_bytes_per_second", found.prefill_bytes_per_second },
            { "work_ingresses", found.ingresses },
            { "work_ramp_seconds", found.ramp_seconds },
            { "work_stall_seconds", found.stall_seconds },
            { "work_upload_seconds", found.upload_seconds },
            { "work_backoff_first_seconds", found.backoff.first },
            { "work_backoff_longest_seconds", found.backoff.longest },
            { "work_ejection_max_percent", found.backoff.most_percent },
            { "work_ejection_errors", found.outlier.row },
            { "work_max_kv_cache_ratio", found.kv_share },
            { "work_ejection_error_ratio", found.outlier.error_ratio },
            { "work_ejection_interval_seconds", found.outlier.interval_seconds },
            { "work_affinity", found.affinity },
            { "work_session_header", found.session_header },
            { "work_affinity_factor", found.affinity_factor },
            { "work_affinity_slack_bytes", found.affinity_slack_bytes },
        }
        local compared = {
            -- What nginx itself is told, not Lua.
            work_keepalive = true,
            work_keepalive_timeout_seconds = true,
            work_memory_mib = true,
            work_prefix_memory_mib = true,
        }
        for _, pair in ipairs(pairs_of) do
            compared[pair[1]] = true
            assert.equal(role["nginx_ingress_" .. pair[1]], pair[2], pair[1])
        end
        for name in pairs(role) do
            local short = name:match "^nginx_ingress_(work_.*)"
            assert.is_true(short == nil or compared[short], name)
        end
    end)

    local refused = {
        { "trys: there is no such setting", { trys = 5 } },
        { "1: there is no such setting", { 5 } },
        { "backoff.frist: there is no such setting", { backoff = { frist = 1 } } },
        { "backoff: expected an object", { backoff = 1 } },
        { "tries: expected an integer of at least 1", { tries = 0 } },
        { "tries: expected an integer of at least 1", { tries = 1.5 } },
        { "tries: expected an integer of at least 1", { tries = "3" } },
        { "stream_bytes: expected a number of at least 0 bytes", { stream_bytes = -1 } },
        { "stream_bytes: expected a number of at least 0 bytes", { stream_bytes = 0 / 0 } },
        { "stall_seconds: expected a number of at least 0.001 s", { stall_seconds = 0 } },
        { "stall_seconds: expected a number of at least 0.001 s", { stall_seconds = math.huge } },
        { "affinity: expected one of off, session, prefix", { affinity = false } },
        { "session_header: expected a text like X-Session-Id", { session_header = "X Session" } },
        { "dict: expected a text", { dict = "" } },
        { "backoff.longest: expected at least backoff.first", { backoff = { first = 11 } } },
        { "backoff.memory: expected more than backoff.longest", { backoff = { memory = 10 } } },
        {
            "affinity_factor: expected a number of at least 1; ingresses: expected an integer of at least 1",
            { ingresses = 0, affinity_factor = 0 },
        },
    }
    for _, case in ipairs(refused) do
        it("refuse: " .. case[1], function()
            local found, problems = settings.of(case[2])
            assert.is_nil(found)
            assert.equal(case[1], problems)
        end)
    end

    it("refuse what is no JSON object", function()
        for _, text in ipairs { "", "{", "7", "null" } do
            local found, problems = settings.read(text)
            assert.is_nil(found)
            assert.equal(1, problems:find("expected a JSON object", 1, true), problems)
        end
    end)
end)
