local large_bodies = require "vllm_nginx_lb.large_bodies"
local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local MB = 1000 * 1000

describe("large bodies", function()
    local dict, settings, pids

    --- What a worker counts; the others of `pids` live.
    local function worker(pid)
        return large_bodies.new {
            settings = settings,
            dict = shared_dict.open(dict, { name = "test" }),
            pid = pid,
            other_pids = function()
                local others = {}
                for _, each in ipairs(pids) do
                    others[#others + 1] = each ~= pid and each or nil
                end
                return others
            end,
        }
    end

    local number = 0

    --- Let a client begin a request; returns the status of a refusal, or the request's identifier.
    local function enter(it, client, length)
        number = number + 1
        local answer = it:enter("r" .. number, function()
            return client
        end, length)
        return answer and answer.status or "r" .. number
    end

    local function keys()
        local found = {}
        for _, key in ipairs(dict:get_keys()) do
            found[#found + 1] = key:find "^bodies:" and key or nil
        end
        return found
    end

    before_each(function()
        dict, pids = new_dict(), { 1, 2 }
        settings =
            { large_requests = 3, max_body_bytes = 20 * MB, body_buffer_bytes = MB - 1, body_place_bytes = 100 * MB }
    end)

    it("have a bound for each client, over all workers", function()
        local first, second = worker(1), worker(2)
        local ended = enter(first, "a", MB)
        enter(second, "a", MB)
        enter(first, "a", MB)
        assert.same({ 429, 429 }, { enter(first, "a", MB), enter(second, "a", MB) })
        assert.equal("string", type(enter(first, "b", MB)))
        first:leave(ended)
        assert.equal("string", type(enter(second, "a", MB)))
    end)

    it("take half of the place for a client, and the place for all", function()
        settings.large_requests = 100
        local it = worker(1)
        local one = enter(it, "a", 20 * MB)
        enter(it, "a", 20 * MB)
        assert.equal(429, enter(it, "a", 20 * MB))
        enter(it, "a", 10 * MB)
        enter(it, "b", 20 * MB)
        enter(it, "b", 20 * MB)
        assert.equal(503, enter(it, "c", 20 * MB))
        it:leave(one)
        assert.equal("string", type(enter(it, "c", 20 * MB)))
    end)

    it("are all let in, one for each client, if the place is small", function()
        settings.body_place_bytes = 20 * MB
        assert.equal("string", type(enter(worker(1), "a", 20 * MB)))
    end)

    it("count as the largest one until their length is known", function()
        settings.large_requests = 100
        local it = worker(1)
        local first = enter(it, "a", nil)
        enter(it, "a", nil)
        assert.equal(429, enter(it, "a", nil))
        it:received(first, 2 * MB)
        assert.equal("string", type(enter(it, "a", nil)))
        assert.same({ 3, 42 * MB }, { it:sum "a" })
    end)

    it("that turn out to be small count no longer", function()
        local it = worker(1)
        it:received(enter(it, "a", nil), 100)
        assert.same({ 0, 0 }, { it:sum "a" })
        assert.same({}, keys())
    end)

    it("have no bound for a client where the setting says so, but the place has one", function()
        settings.large_requests = 0
        local it = worker(1)
        for _ = 1, 5 do
            enter(it, "a", 20 * MB)
        end
        assert.equal(503, enter(it, "a", 20 * MB))
        settings.body_place_bytes = 0
        assert.equal("string", type(enter(it, "a", 20 * MB)))
    end)

    it("are counted in bytes as soon as nginx writes them to a file", function()
        settings.body_buffer_bytes = 1000
        local it = worker(1)
        enter(it, "a", 1000)
        enter(it, "a", 1001)
        assert.same({ 0, 1001 }, { it:sum "a" })
    end)

    it("count once where an error page leads through the access phase again", function()
        local it = worker(1)
        for _ = 1, 2 do
            assert.is_nil(it:enter("same", function()
                return "a"
            end, MB))
        end
        it:leave "same"
        assert.same({}, keys())
    end)

    it("that fit into memory have a bound in bytes for each client, too", function()
        settings.body_place_bytes = 40 * MB
        local it, open = worker(1), {}
        for i = 1, 40 do
            open[i] = enter(it, "a", MB / 2)
        end
        assert.same({ 429, "string" }, { enter(it, "a", MB / 2), type(enter(it, "a", MB / 11)) })
        assert.equal("string", type(enter(it, "b", 20 * MB))) -- the place is empty
        it:leave(open[1])
        assert.equal("string", type(enter(it, "a", MB / 2)))
    end)

    it("leave nothing behind", function()
        local it, open = worker(1), {}
        for i = 1, 9 do
            open[i] = enter(it, "client " .. i % 3, 2 * MB)
        end
        for i = 1, 9 do
            it:leave(open[i])
            it:leave(open[i])
        end
        assert.same({}, keys())
        assert.same({}, it.own)
        assert.same({}, it.open)
    end)

    it("of a dead worker are not added up, and a worker with its process id removes them", function()
        local first, second = worker(1), worker(2)
        for _ = 1, 3 do
            enter(second, "a", MB)
        end
        assert.equal(429, enter(first, "a", MB))
        pids = { 1 }
        assert.equal("string", type(enter(first, "a", MB)))
        pids = { 1, 2 }
        worker(2)
        assert.same({ 1, MB }, { first:sum "a" })
    end)
end)
