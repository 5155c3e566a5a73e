local full_nodes = require "vllm_nginx_lb.full_nodes"

describe("full nodes", function()
    it("are known for a second after each time that they say so", function()
        local now = 10
        local nodes = full_nodes.new(function()
            return now
        end)
        assert.is_nil(next(nodes:lately()))
        nodes:note "a:1"
        now = 10.6
        nodes:note "b:1"
        assert.same({ ["a:1"] = 11, ["b:1"] = 11.6 }, nodes:lately())
        now = 11
        assert.same({ ["b:1"] = 11.6 }, nodes:lately())
        nodes:note "b:1"
        now = 11.9
        assert.same({ ["b:1"] = 12 }, nodes:lately())
        now = 12
        assert.is_nil(next(nodes:lately()))
    end)
end)
