local cjson = require "cjson"
local new_dict = require "fake_dict"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local readings = require "vllm_nginx_lb.readings"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "127.0.0.3:8000"

describe("readings", function()
    local path, said, now, open, read, pools

    local function write(text)
        local file = assert(io.open(path, "wb"))
        file:write(text)
        file:close()
    end

    --- Write a file with these nodes; `at` is new in each.
    local function publish(at, nodes)
        write(cjson.encode { version = 1, decided_at = at, interval_seconds = 10, nodes = nodes })
    end

    --- What node A has after a refresh.
    local function refreshed()
        read:refresh(pools)
        local node = pools.llm_cluster.nodes[1]
        return { node.kv_tokens, node.kv_usage or "unknown", node.kv_left or "any" }
    end

    before_each(function()
        path, said, now = os.tmpname(), {}, 1000
        open = open_prompts.new(shared_dict.open(new_dict(), { name = "test" }))
        pools = { llm_cluster = { nodes = { { peer = A }, { peer = B } } } }
        read = readings.new {
            settings = { readings_file = path, kv_share = 0.75 },
            open = open,
            now = function()
                return now
            end,
            log = function(text)
                said[#said + 1] = text:gsub(path, "FILE", 1)
            end,
        }
    end)

    after_each(function()
        os.remove(path)
    end)

    it("tell how much room each node has, less what is sent since", function()
        open:add(A, 5000) -- before the reading
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        assert.same({ 1000, 0.5, 250 }, refreshed())
        open:add(A, 75)
        assert.same({ 1000, 0.5, 175 }, refreshed())
        open:add(A, -575)
        assert.same({ 1000, 0.5, 750 }, refreshed())
        publish("2", { [A] = { kv_tokens = 1000, kv_usage = 0.25 } })
        assert.same({ 1000, 0.25, 500 }, refreshed())
        assert.is_nil(pools.llm_cluster.nodes[2].kv_tokens)
    end)

    it("tell new records of the same nodes too", function()
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        refreshed()
        pools = { llm_cluster = { nodes = { { peer = A } } } }
        assert.same({ 1000, 0.5, 250 }, refreshed())
    end)

    it("end after three intervals without a new file; sizes stay", function()
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        refreshed()
        now = 1030
        assert.same({ 1000, 0.5, 250 }, refreshed())
        now = 1030.1
        assert.same({ 1000, "unknown", "any" }, refreshed())
        publish("2", { [A] = { kv_usage = 0.5 } }) -- new, though what it has is the same
        assert.same({ 1000, 0.5, 250 }, refreshed())
        assert.same({}, said)
    end)

    it("end with the file, and nothing is said of that", function()
        os.remove(path)
        assert.same({ nil, "unknown", "any" }, refreshed())
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        refreshed()
        os.remove(path)
        assert.same({ 1000, "unknown", "any" }, refreshed())
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        assert.same({ 1000, 0.5, 250 }, refreshed())
        assert.same({}, said)
    end)

    it("forget the size of a node that has left", function()
        publish("1", { [A] = { kv_tokens = 1000 } })
        refreshed()
        read:keep_only { B }
        assert.is_nil(refreshed()[1])
    end)

    it("end with a faulty file, which is said once", function()
        publish("1", { [A] = { kv_tokens = 1000, kv_usage = 0.5 } })
        refreshed()
        for _, text in ipairs { '{"version":2}', '{"version":2} ' } do
            write(text)
            assert.same({ 1000, "unknown", "any" }, refreshed())
        end
        assert.same({ "FILE: version: expected 1; no KV cache counts as full" }, said)
    end)

    for what, case in pairs {
        ["no JSON"] = { "{", "Expected" },
        ["too large"] = { ("x"):rep(2 ^ 20 + 1), "larger than 1048576 bytes" },
        ["nested a million deep"] = { ("["):rep(10 ^ 6), "nested" },
    } do
        it("are refused where the file is " .. what, function()
            write(case[1])
            refreshed()
            assert.equal(1, #said)
            assert.is_truthy(said[1]:find(case[2], 1, true), said[1])
        end)
    end

    for what, make in pairs { ["a pipe"] = "mkfifo ", ["a directory"] = "mkdir ", ["a device"] = "ln -s /dev/zero " } do
        it("keep nobody waiting where the file is " .. what, function()
            os.remove(path)
            assert(os.execute(make .. path))
            assert.same({ nil, "unknown", "any" }, refreshed())
            assert.equal(1, #said)
        end)
    end
end)
