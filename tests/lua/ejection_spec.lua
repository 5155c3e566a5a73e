local ejection = require "vllm_nginx_lb.ejection"
local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B = "127.0.0.2:8000", "127.0.0.3:8000"

describe("ejection", function()
    local dict, nodes

    local function open(first)
        local times = { first = first, longest = 8, memory = 60, probe = 10 }
        local opened = ejection.new(shared_dict.open(dict, { name = "test" }), times, function()
            return dict.now
        end)
        opened:use_nodes { A, B }
        return opened
    end

    before_each(function()
        dict = new_dict()
        nodes = open(1)
    end)

    it("takes answers of a gateway for failures, and no others", function()
        for _, status in ipairs { 502, 503, 504 } do
            assert.is_true(ejection.is_failure(status))
        end
        for _, status in ipairs { 200, 404, 429, 500 } do
            assert.is_false(ejection.is_failure(status))
        end
        assert.is_false(ejection.is_failure(nil))
    end)

    it("knows of no failure at first", function()
        assert.same({}, nodes:out())
        assert.is_true(nodes:may_take(A))
    end)

    it("ejects a node that failed, and only that one", function()
        nodes:failed(A)
        assert.same({ [A] = true }, nodes:out())
        assert.is_false(nodes:may_take(A))
        assert.is_true(nodes:may_take(B))
        assert.equal(1, nodes:seconds_left(A))
        assert.equal(0, nodes:seconds_left(B))
    end)

    it("ejects it for longer each time, up to a limit", function()
        local seconds = {}
        for i = 1, 5 do
            nodes:failed(A)
            seconds[i] = nodes:seconds_left(A)
            dict.now = dict.now + seconds[i]
        end
        assert.same({ 1, 2, 4, 8, 8 }, seconds)
    end)

    it("takes what fails at the same time for one failure", function()
        for _ = 1, 6 do
            nodes:failed(A)
        end
        assert.equal(1, nodes:seconds_left(A))
    end)

    it("remembers as long as it goes on failing", function()
        for _ = 1, 20 do
            nodes:failed(A)
            dict.now = dict.now + 10
        end
        nodes:chosen(A)
        assert.is_false(nodes:may_take(A)) -- one trial at a time, all the while
    end)

    it("ejects no node where it is switched off", function()
        nodes = open(0)
        nodes:failed(A)
        assert.is_true(nodes:may_take(A))
    end)

    it("then lets one request try it, until that has ended", function()
        nodes:failed(A)
        dict.now = 1.5
        assert.is_true(nodes:may_take(A))
        nodes:chosen(A)
        assert.is_false(nodes:may_take(A))
        nodes:succeeded(A)
        assert.is_true(nodes:may_take(A))
        nodes:failed(A)
        assert.equal(1, nodes:seconds_left(A)) -- its failures before are forgotten
    end)

    it("lets another one try when the first has taken too long", function()
        nodes:failed(A)
        dict.now = 1.5
        nodes:chosen(A)
        dict.now = 12
        assert.is_true(nodes:may_take(A))
    end)

    it("does not limit a node that never failed", function()
        nodes:failed(B)
        nodes:chosen(A)
        assert.is_true(nodes:may_take(A))
    end)

    it("forgets", function()
        nodes:failed(A)
        dict.now = 61
        assert.same({}, nodes:out())
        assert.is_true(nodes:may_take(A))
    end)

    it("shows each worker who is out now, whoever noticed it and when", function()
        local other = open(1)
        assert.same({ {}, {} }, { nodes:out(), other:out() })
        nodes:failed(B)
        assert.same({ { [B] = true }, { [B] = true } }, { nodes:out(), other:out() })
        dict.now = 1.5
        assert.same({ {}, {} }, { nodes:out(), other:out() })
        other:chosen(B) -- its trial
        assert.same({ { [B] = true }, { [B] = true } }, { nodes:out(), other:out() })
        dict.now = 12
        assert.same({}, nodes:out())
        nodes:chosen(B)
        other:succeeded(B)
        assert.same({ {}, {} }, { nodes:out(), other:out() })
        nodes:failed(A)
        nodes:use_nodes { B }
        assert.same({}, nodes:out())
    end)
end)
