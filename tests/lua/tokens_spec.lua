local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local tokens = require "vllm_nginx_lb.tokens"

local KIB, DAY = 1024, 24 * 3600

describe("tokens", function()
    local fake, clients, rates

    before_each(function()
        fake = new_dict()
        clients = new_dict()
        rates = tokens.new(
            shared_dict.open(fake, { name = "test" }),
            shared_dict.open(clients, { name = "clients", advice = "", log = function() end })
        )
    end)

    --- Bytes per token after some prompts, each of a client who has not taught lately.
    local function learned(times, bytes, count)
        for _ = 1, times do
            clients.now = clients.now + 5
            rates:learn("somebody", "pool", "model", bytes, count)
        end
        return 1 / rates:per_byte("pool", "model")
    end

    it("have four bytes before anything is learned", function()
        assert.equal(0.25, rates:per_byte("pool", "model"))
        assert.same({}, rates:rows({ pool = {} }, { model = "pool" }))
    end)

    for bytes_per_token, count in pairs { [2] = 8192, [5.6] = 16384 / 5.6, [21] = 16384 / 21 } do
        it(("are learned within 400 prompts of 16 KiB: %g bytes each"):format(bytes_per_token), function()
            assert.near(bytes_per_token, learned(400, 16 * KIB, count), bytes_per_token / 50)
        end)
    end

    for name, case in pairs {
        ["short prompts, which count little"] = { 100, 8, 8, 0.25 + 0.75 * 800 / 2 ^ 20 },
        ["long prompts, of which none counts for more than 16 KiB"] = { 1, 2 ^ 30, 2 ^ 30, 0.25 + 0.75 / 64 },
        ["a node that says there are more tokens than bytes"] = { 1, 16 * KIB, 2 ^ 24, 0.25 + 0.75 / 64 },
        ["a node that says there is hardly any token"] = { 1, 16 * KIB, 1, 0.25 - (1 / 4 - 1 / 32) / 64 },
    } do
        it("move little by " .. name, function()
            assert.near(1 / case[4], learned(case[1], case[2], case[3]), 0.003)
        end)
    end

    it("stay within what is possible, whatever nodes say", function()
        assert.near(1, learned(2000, 16 * KIB, 2 ^ 24), 1e-3)
        assert.near(32, learned(2000, 16 * KIB, 1), 0.1)
    end)

    for name, case in pairs {
        ["of one client at once"] = { 200, 1, 0, 1 },
        ["of one client, one a second"] = { 200, 1, 1, 40 },
        ["of one client, one in five seconds"] = { 200, 1, 5, 200 },
        ["of four clients at once"] = { 200, 4, 0, 4 },
    } do
        it("count as the prompts of one client in five seconds: " .. name, function()
            local prompts, senders, seconds, taught = unpack(case)
            for i = 1, prompts do
                rates:learn("client " .. i % senders, "pool", "model", 16 * KIB, 9)
                clients.now = clients.now + seconds
            end
            local expected = 1 / 32 + (1 / 4 - 1 / 32) * (63 / 64) ^ taught
            assert.near(expected, rates:per_byte("pool", "model"), 1e-9)
        end)
    end

    it("are not learned as long as there is no room to remember a client", function()
        clients.lacks_memory = "fails"
        rates:learn("somebody", "pool", "model", 16 * KIB, 9)
        assert.equal(0.25, rates:per_byte("pool", "model"))
        clients.lacks_memory = nil
        rates:learn("somebody", "pool", "model", 16 * KIB, 9)
        assert.is_true(rates:per_byte("pool", "model") < 0.25)
    end)

    it("belong to a pool and a model", function()
        rates:learn("one", "a", "model", 16 * KIB, 16 * KIB)
        rates:learn("another", "a", nil, 16 * KIB, 512)
        local of_model, without = rates:per_byte("a", "model"), rates:per_byte "a"
        assert.is_true(of_model > 0.25 and without < 0.25)
        assert.same({ 0.25, 0.25 }, { rates:per_byte("b", "model"), rates:per_byte("a", "other") })
        local rows = rates:rows({ a = {}, b = {} }, { model = "a", other = "b" })
        table.sort(rows, function(one, other)
            return one.model < other.model
        end)
        assert.same({
            { pool = "a", model = "", bytes_per_token = 1 / without },
            { pool = "a", model = "model", bytes_per_token = 1 / of_model },
        }, rows)
    end)

    it("are forgotten a week after the last prompt, as the model may be gone", function()
        local before = learned(1, 16 * KIB, 16 * KIB)
        fake.now = 6 * DAY
        assert.is_true(learned(1, 16 * KIB, 16 * KIB) < before)
        fake.now = 12 * DAY
        assert.is_true(rates:per_byte("pool", "model") > 0.25)
        fake.now = 14 * DAY
        assert.equal(0.25, rates:per_byte("pool", "model"))
    end)
end)
