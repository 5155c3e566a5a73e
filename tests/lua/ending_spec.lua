local ending = require "vllm_nginx_lb.ending"

-- What nginx's body filter sees.
local PIECE, FLUSH, LAST_PIECE, LAST = { false, false }, { true, false }, { false, true }, { true, true }

describe("the end of an answer", function()
    -- The stage that the request is in then, what the filter has seen, and the fault.
    for name, case in pairs {
        ["with output"] = { "body", { FLUSH, PIECE, LAST }, nil },
        ["with output in its last piece"] = { "body", { LAST_PIECE }, nil },
        ["without output"] = { "headers", { FLUSH, PIECE, LAST }, "no_output" },
        ["without a body"] = { "headers", { LAST }, "no_output" },
        ["that its node breaks off"] = { "body", { FLUSH, PIECE, FLUSH }, "cut_off" },
        ["that its node breaks off before output"] = { "headers", { FLUSH, PIECE, FLUSH }, "cut_off" },
        ["that its node breaks off after the headers"] = { "headers", { FLUSH, FLUSH }, "cut_off" },
        ["that its client leaves"] = { "body", { FLUSH, PIECE }, nil },
        ["that its client leaves after the headers"] = { "headers", { FLUSH }, nil },
        ["that its client leaves at once"] = { "headers", {}, nil },
    } do
        local stage, seen, fault = unpack(case, 1, 3)
        it("is judged: " .. name, function()
            local request = { stage = stage }
            for _, each in ipairs(seen) do
                ending.see(request, each[1], each[2])
            end
            assert.equal(fault, ending.fault(request, 200))
            assert.equal("no_output", ending.fault(request, 204))
            request.is_light = true
            assert.is_nil(ending.fault(request, 200))
        end)
    end

    it("of an error is a fault", function()
        local request = { stage = "body", head = '{"error": {}}', is_complete = true }
        assert.equal("no_output", ending.fault(request, 200))
    end)

    -- The client may leave when it has read the error.
    for _, is_complete in ipairs { true, false } do
        it("with an error in a stream is a fault: " .. tostring(is_complete), function()
            local request = { stage = "body", output = { has_failed = true }, is_complete = is_complete }
            assert.equal("cut_off", ending.fault(request, 200))
        end)
    end
end)
