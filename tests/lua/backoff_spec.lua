local backoff = require "vllm_nginx_lb.backoff"
local new_dict = require "fake_dict"

local A, B = "127.0.0.2:8000", "127.0.0.3:8000"

describe("backoff", function()
    local dict, failures

    before_each(function()
        dict = new_dict()
        failures = backoff.new(dict, { first = 1, longest = 8, memory = 60, probe = 10 })
    end)

    it("knows of no trouble at first", function()
        assert.is_false(failures:trouble())
        assert.is_true(failures:usable(A))
    end)

    it("leaves out a node that failed, and only that one", function()
        failures:failed(A)
        assert.is_true(failures:trouble())
        assert.is_false(failures:usable(A))
        assert.is_true(failures:usable(B))
        assert.equal(1, failures:seconds_left(A))
        assert.equal(0, failures:seconds_left(B))
    end)

    it("leaves it out longer each time, up to a limit", function()
        local seconds = {}
        for i = 1, 5 do
            failures:failed(A)
            seconds[i] = failures:seconds_left(A)
            dict.now = dict.now + seconds[i]
        end
        assert.same({ 1, 2, 4, 8, 8 }, seconds)
    end)

    it("takes what fails at the same time for one failure", function()
        for _ = 1, 6 do
            failures:failed(A)
        end
        assert.equal(1, failures:seconds_left(A))
    end)

    it("remembers as long as it goes on failing", function()
        for _ = 1, 20 do
            failures:failed(A)
            dict.now = dict.now + 10
        end
        failures:taken(A)
        assert.is_false(failures:usable(A)) -- one trial at a time, all the while
    end)

    it("leaves out nobody where it is switched off", function()
        failures = backoff.new(dict, { first = 0, longest = 8, memory = 60, probe = 10 })
        failures:failed(A)
        assert.is_true(failures:usable(A))
    end)

    it("then lets one request try it, until that has ended", function()
        failures:failed(A)
        dict.now = 1.5
        assert.is_true(failures:usable(A))
        failures:taken(A)
        assert.is_false(failures:usable(A))
        failures:succeeded(A)
        assert.is_true(failures:usable(A))
        failures:failed(A)
        assert.equal(1, failures:seconds_left(A)) -- its failures before are forgotten
    end)

    it("lets another one try when the first has taken too long", function()
        failures:failed(A)
        dict.now = 1.5
        failures:taken(A)
        dict.now = 12
        assert.is_true(failures:usable(A))
    end)

    it("does not limit a node that never failed", function()
        failures:failed(B)
        failures:taken(A)
        assert.is_true(failures:usable(A))
    end)

    it("forgets", function()
        failures:failed(A)
        dict.now = 61
        assert.is_false(failures:trouble())
        assert.is_true(failures:usable(A))
    end)
end)
