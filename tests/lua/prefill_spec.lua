local new_dict = require "fake_dict"
local prefill = require "vllm_nginx_lb.prefill"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "[::1]:8000"
local DEFAULT = 10000 -- bytes per second

--- A number rounded to hundredths.
local function rounded(number)
    return math.floor(100 * number + 0.5) / 100
end

describe("prefill", function()
    local dict, speeds

    before_each(function()
        dict = shared_dict.open(new_dict(), { name = "test" })
        speeds = prefill.new(dict, DEFAULT)
        math.randomseed(1)
    end)

    --- Learn from answers of a node that takes `constant` seconds and does so many bytes per second.
    local function learn(count, constant, speed, largest, peer)
        for _ = 1, count do
            local bytes = math.random(largest)
            speeds:learn(peer or A, bytes, constant + bytes / speed)
        end
    end

    it("has the default speed at first, and of each node that it knows nothing of", function()
        assert.equal(6, speeds:seconds(A, 60000))
        learn(50, 0, 40000, 60000)
        assert.equal(6, speeds:seconds(B, 60000))
    end)

    for _, case in ipairs { { 0.1, 40000 }, { 0, 2000 }, { 2, 100000 } } do
        local constant, speed = unpack(case)
        it(("learns %s s and %s bytes per second"):format(constant, speed), function()
            learn(300, constant, speed, 60000)
            for _, bytes in ipairs { 0, 1000, 60000 } do
                local really = constant + bytes / speed
                assert.is_true(math.abs(speeds:seconds(A, bytes) - really) < 0.2 + 0.05 * really)
            end
        end)
    end

    it("knows the speed of a node once there is a sample", function()
        assert.is_nil(speeds:speed(A))
        learn(300, 0.1, 40000, 60000)
        assert.is_true(math.abs(speeds:speed(A) - 40000) < 2000)
        assert.is_nil(speeds:speed(B))
    end)

    it("learns anew when a node becomes slower", function()
        learn(300, 0.1, 40000, 60000)
        learn(300, 0.1, 8000, 60000)
        assert.is_true(math.abs(speeds:seconds(A, 40000) - 5.1) < 0.5)
    end)

    it("keeps the default speed for large prompts where all samples are small", function()
        learn(300, 0.08, 40000, 200)
        assert.equal(6.07, rounded(speeds:seconds(A, 60000)))
        assert.is_true(speeds:seconds(A, 100) < 0.1)
    end)

    it("stays within bounds, whatever a node sends", function()
        for _ = 1, 300 do
            speeds:learn(A, math.random(60000), 0)
            speeds:learn(B, math.random(60000), 1e9)
        end
        assert.is_true(speeds:seconds(A, 640000) >= 0.99)
        assert.is_true(speeds:seconds(B, 1) > 59)
        assert.equal(60, speeds:seconds(B, 10 ^ 9))
        speeds:learn(A, 1000, -5)
        assert.is_true(speeds:seconds(A, 0) >= 0)
    end)

    it("is learned by all workers together", function()
        learn(300, 0.1, 40000, 60000)
        local other = prefill.new(dict, DEFAULT)
        assert.equal(speeds:seconds(A, 5000), other:seconds(A, 5000))
    end)
end)
