local cjson = require "cjson"
local new_dict = require "fake_dict"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local readings = require "vllm_nginx_lb.readings"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "127.0.0.3:8000"

describe("readings", function()
    local path, said, now, clock_step, open, read, pools

    local function write(text)
        local file = assert(io.open(path, "wb"))
        file:write(text)
        file:close()
    end

    --- Unix seconds.
    local function wall_now()
        return 1.7e9 + now + clock_step
    end

    --- Write a file with these nodes, so many seconds old.
    local function publish(nodes, age)
        local at = wall_now() - (age or 0)
        write(cjson.encode { version = 1, decided_at_seconds = at, interval_seconds = 10, nodes = nodes })
    end

    --- What node A has after a refresh.
    local function refreshed()
        read:refresh(pools)
        local node = pools.llm_cluster.nodes[1]
        return { node.kv_tokens, node.kv_usage or "unknown", node.kv_left or "any" }
    end

    before_each(function()
        path, said, now, clock_step = os.tmpname(), {}, 1000, 0
        open = open_prompts.new(shared_dict.open(new_dict(), { name = "test" }))
        pools = { llm_cluster = { nodes = { { peer = A }, { peer = B } } } }
        read = readings.new {
            settings = { readings_file = path, kv_share = 0.75 },
            open = open,
            now = function()
                return now
            end,
            wall_now = wall_now,
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
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        assert.same({ 1000, 0.5, 1000 }, refreshed())
        open:add(A, 300)
        assert.same({ 1000, 0.5, 700 }, refreshed())
        open:add(A, -2300)
        assert.same({ 1000, 0.5, 3000 }, refreshed())
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.25 } }
        assert.same({ 1000, 0.25, 2000 }, refreshed())
        assert.is_nil(pools.llm_cluster.nodes[2].kv_tokens)
    end)

    it("tell new records of the same nodes too", function()
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        refreshed()
        pools = { llm_cluster = { nodes = { { peer = A } } } }
        assert.same({ 1000, 0.5, 1000 }, refreshed())
    end)

    it("end after three intervals without a new file; sizes stay", function()
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        refreshed()
        now = 1030
        assert.same({ 1000, 0.5, 1000 }, refreshed())
        now = 1030.1
        assert.same({ 1000, "unknown", "any" }, refreshed())
        publish { [A] = { kv_usage = 0.5 } } -- new, though what it has is the same
        assert.same({ 1000, 0.5, 1000 }, refreshed())
        assert.same({}, said)
    end)

    for _, case in ipairs { { 0, 30 }, { 29, 1 }, { -29, 1 }, { 31, 0 }, { -31, 0 }, { 1e9, 0 }, { -1e9, 0 } } do
        local age, seconds = unpack(case)
        it(("hold for %d s where their file is %d s old at first sight; sizes stay"):format(seconds, age), function()
            publish({ [A] = { kv_tokens = 1000, kv_usage = 0.5 } }, age)
            assert.same({ 1000, seconds > 0 and 0.5 or "unknown", seconds > 0 and 1000 or "any" }, refreshed())
            now = now + seconds + 0.1
            assert.same({ 1000, "unknown", "any" }, refreshed())
        end)
    end

    it("hold for as long as before when somebody sets the clock", function()
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        for _, seconds in ipairs { 0, 3600, -3600 } do
            clock_step = seconds
            assert.same({ 1000, 0.5, 1000 }, refreshed())
        end
    end)

    it("end with the file, and nothing is said of that", function()
        os.remove(path)
        assert.same({ nil, "unknown", "any" }, refreshed())
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        refreshed()
        os.remove(path)
        assert.same({ 1000, "unknown", "any" }, refreshed())
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
        assert.same({ 1000, 0.5, 1000 }, refreshed())
        assert.same({}, said)
    end)

    it("forget the size of a node that has left", function()
        publish { [A] = { kv_tokens = 1000 } }
        refreshed()
        read:keep_only { B }
        assert.is_nil(refreshed()[1])
    end)

    it("end with a faulty file, which is said once", function()
        publish { [A] = { kv_tokens = 1000, kv_usage = 0.5 } }
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
