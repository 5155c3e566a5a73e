local readings_format = require "vllm_nginx_lb.readings_format"

local A = "127.0.0.2:8000"

describe("readings_format", function()
    --- A file with this node, and changes.
    local function content_of(node, changes)
        local content = { version = 1, decided_at_seconds = 7, interval_seconds = 10, nodes = { [A] = node } }
        for key, value in pairs(changes or {}) do
            content[key] = value
        end
        return content
    end

    it("has what is known of each node", function()
        local found = readings_format.read(content_of { kv_tokens = 6400, kv_usage = 0.5, other = 1 })
        assert.same({
            decided_at_seconds = 7,
            interval_seconds = 10,
            nodes = { [A] = { kv_tokens = 6400, kv_usage = 0.5 } },
        }, found)
        assert.same({ [A] = { kv_usage = 0 } }, readings_format.read(content_of { kv_usage = 0 }).nodes)
        assert.same({ [A] = {} }, readings_format.read(content_of {}).nodes)
    end)

    for problem, content in pairs {
        ["version: expected 1"] = content_of({}, { version = 2 }),
        ["interval_seconds: expected 0.1 to 86400"] = content_of({}, { interval_seconds = 0 }),
        ["decided_at_seconds: expected 0 to 2^53"] = content_of({}, { decided_at_seconds = -1 }),
        ["nodes: expected an object"] = content_of({}, { nodes = "none" }),
        ["nodes: expected an object for each address"] = content_of(7),
        ["nodes: kv_tokens: expected 1 to 2^53"] = content_of { kv_tokens = 0 },
        ["nodes: kv_usage: expected 0 to 1"] = content_of { kv_usage = 1.01 },
    } do
        it("is refused whole: " .. problem, function()
            assert.same({ nil, problem }, { readings_format.read(content) })
        end)
    end

    for what, content in pairs {
        ["no object"] = 5,
        ["a time as a text"] = content_of({}, { decided_at_seconds = "2026-01-01" }),
        ["a time that is no number"] = content_of({}, { decided_at_seconds = 0 / 0 }),
        ["a list"] = content_of({}, { nodes = { {} } }),
        ["a size that is no number"] = content_of { kv_tokens = "6400" },
        ["a size that is infinite"] = content_of { kv_tokens = math.huge },
        ["a usage that is no number"] = content_of { kv_usage = 0 / 0 },
        ["a usage below 0"] = content_of { kv_usage = -0.1 },
    } do
        it("refuses " .. what, function()
            assert.is_nil((readings_format.read(content)))
        end)
    end
end)
