local cjson = require "cjson"
local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local weights_file = require "vllm_nginx_lb.weights_file"
local weights_format = require "vllm_nginx_lb.weights_format"

local UPSTREAM_FILE = [[
# Written by vllm-nginx-lb; changes made here are lost. sha256 of the rest: 0
map "" $vllm_nginx_lb_generation { default "c0ffee"; }

upstream llm_cluster {
    zone llm_cluster 1m;
    least_conn;
    server 10.0.0.1:18090 weight=60 max_fails=10 fail_timeout=60s; # node-a
    server [2001:db8::1]:8000 down max_fails=10 fail_timeout=60s; # node-b
    server 10.0.0.3:18090 max_conns=8; # node-c
    # All nodes again, for when nginx has left out all of the above: a node that works again serves at once.
    server 10.0.0.1:18090 backup weight=60 max_fails=0;
    keepalive 64;
}
]]

describe("weights_file", function()
    local path, upstream_path, dict, said, changes, now

    local function write(to, text)
        local file = assert(io.open(to, "wb"))
        file:write(text)
        file:close()
    end

    --- The text of a file with one node of this weight.
    local function text_of(generation, weight)
        local node = { name = "node-a", address = "127.0.0.2", port = 8000, weight = weight }
        local pools = { { name = "llm_cluster", models = { "m" }, nodes = { node } } }
        return cjson.encode { version = 1, generation = generation, pools = pools }
    end

    local function open()
        return weights_file.new {
            path = path,
            upstream_path = upstream_path,
            dict = shared_dict.open(dict, { name = "test" }),
            slow_start_seconds = 30,
            now = function()
                return now
            end,
            log = function(text)
                said[#said + 1] = text:gsub(path, "FILE", 1)
            end,
            on_change = function(found, former)
                changes[#changes + 1] = { found.generation, former and former.generation }
            end,
        }
    end

    before_each(function()
        path, upstream_path = os.tmpname(), os.tmpname()
        dict, said, changes, now = new_dict(), {}, {}, 1000
        os.remove(path)
        os.remove(upstream_path)
    end)

    after_each(function()
        os.remove(path)
        os.remove(upstream_path)
    end)

    it("takes what is published, and tells of it", function()
        write(path, text_of("0a", 100))
        local file = open()
        assert.equal("seed", file:generation())
        assert.same({}, file:models())
        file:refresh()
        assert.equal("0a", file:generation())
        assert.same({ m = "llm_cluster" }, file:models())
        assert.equal(100, file:pools().llm_cluster.nodes[1].effective_weight)
        file:refresh()
        write(path, text_of("0b", 50))
        file:refresh()
        assert.same({ { "0a" }, { "0b", "0a" } }, changes)
        assert.same({}, said)
    end)

    it("takes JSON in any layout", function()
        write(path, text_of("0a", 100):gsub("([,{%[])", "%1\n  "))
        local file = open()
        file:refresh()
        assert.equal("0a", file:generation())
    end)

    it("lets a node that comes back start slowly", function()
        write(path, text_of("0a", 0))
        local file = open()
        file:refresh()
        write(path, text_of("0b", 100))
        file:refresh()
        assert.equal(10, file:pools().llm_cluster.nodes[1].effective_weight)
        now = 1031
        file:go_on()
        assert.equal(100, file:pools().llm_cluster.nodes[1].effective_weight)
    end)

    it("refuses a bad file whole, says so once, and keeps the last good one", function()
        write(path, text_of("0a", 100))
        local file = open()
        file:refresh()
        write(path, text_of("0b", 101))
        file:refresh()
        file:refresh()
        assert.equal("0a", file:generation())
        local problem = "pools[0].nodes[0] weight: expected 0 to 100"
        assert.same({ "FILE: " .. problem .. "; the last good weights stay" }, said)
    end)

    it("says that no node is known where there is nothing at all", function()
        local file = open()
        file:refresh()
        file:refresh()
        assert.same({ "FILE: " .. path .. ": No such file or directory; no node is known yet" }, said)
        assert.same({}, file:pools())
        file:go_on()
    end)

    it("begins with the last good weights of the workers before", function()
        write(path, text_of("0a", 100))
        open():refresh()
        write(upstream_path, UPSTREAM_FILE)
        write(path, "{")
        local file = open()
        file:refresh()
        assert.equal("0a", file:generation())
        assert.equal(1, #said)
        os.remove(path)
        file = open()
        file:refresh()
        assert.equal("0a", file:generation())
        assert.equal(1, #said)
    end)

    it("begins with what nginx's own balancer had, and says nothing", function()
        write(upstream_path, UPSTREAM_FILE)
        local file = open()
        file:refresh()
        assert.same({ "c0ffee", {} }, { file:generation(), said })
    end)

    it("reads the upstream file of nginx's own balancer", function()
        local found = weights_format.read(weights_file.of_upstream_file(UPSTREAM_FILE))
        assert.equal("c0ffee", found.generation)
        local nodes = found.pools.llm_cluster.nodes
        assert.same({ "node-a", "10.0.0.1:18090", 60 }, { nodes[1].name, nodes[1].peer, nodes[1].weight })
        assert.same({ "node-b", "[2001:db8::1]:8000", 0 }, { nodes[2].name, nodes[2].peer, nodes[2].weight })
        assert.same({ "node-c", 1, 8 }, { nodes[3].name, nodes[3].weight, nodes[3].max_conns })
    end)
end)
