local ejection = require "vllm_nginx_lb.ejection"
local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local PEERS = { "127.0.0.2:8000", "127.0.0.3:8000", "127.0.0.4:8000", "127.0.0.5:8000" }
local A, B = PEERS[1], PEERS[2]

describe("ejection", function()
    local dict, now, nodes, counts, pool, said

    local function open(settings)
        local all = { first = 1, longest = 8, memory = 60, probe = 10, most_percent = 50 }
        for name, value in pairs(settings or {}) do
            all[name] = value
        end
        local shared = shared_dict.open(dict, { name = "test" })
        counts = node_counts.new(shared)
        local found = ejection.new(shared, all, function()
            return now
        end, counts, function(text)
            said[#said + 1] = text
        end)
        found:use_nodes(PEERS)
        return found
    end

    local function may_take(peer, of)
        of = of or nodes
        return not of:out()[peer]
    end

    --- Whether each node gets requests.
    local function taken()
        local found = {}
        for i, peer in ipairs(PEERS) do
            found[i] = may_take(peer)
        end
        return found
    end

    before_each(function()
        dict, now, said = new_dict(), 1000, {}
        nodes = open()
        pool = { nodes = {} }
        for i, peer in ipairs(PEERS) do
            pool.nodes[i] = { peer = peer, effective_weight = 1 }
        end
    end)

    it("knows of no failure at first, and then reads one key for all nodes", function()
        nodes:out()
        local reads, get = 0, dict.get
        dict.get = function(...)
            reads = reads + 1
            return get(...)
        end
        assert.same({}, nodes:out())
        assert.equal(1, reads)
        assert.is_nil(next(nodes:out()))
        assert.is_true(may_take(A))
        assert.is_nil(nodes:cause(A))
    end)

    it("ejects a node that failed, and only that one, and counts it", function()
        assert.is_true(nodes:failed(A, "broken", pool))
        assert.is_not_nil(next(nodes:out()))
        assert.same({ [A] = true }, nodes:out())
        assert.same({ false, true, true, true }, taken())
        assert.same({ 1, 0, "broken" }, { nodes:seconds_left(A), nodes:seconds_left(B), nodes:cause(A) })
        assert.same({ 1, 0 }, { counts:times_ejected(A, "broken"), counts:times_ejected(B, "broken") })
        assert.same({ A .. " gets no requests for 1 s: it broke a connection before an answer" }, said)
    end)

    it("is known to each worker at once", function()
        local other = open()
        assert.is_true(may_take(A, other))
        nodes:failed(A, "broken", pool)
        assert.is_false(may_take(A, other))
        now = now + 1
        assert.is_true(may_take(A, other))
        other:chosen(A)
        assert.is_false(may_take(A))
        other:succeeded(A)
        assert.is_true(may_take(A))
    end)

    it("is read by each worker where it has changed, and whole after many changes", function()
        local other, reads = open(), {}
        other:out()
        local read = other.records.read
        other.records.read = function(self, peer)
            reads[#reads + 1] = peer
            return read(self, peer)
        end
        nodes:failed(B, "broken", pool)
        assert.same({ [B] = true }, other:out())
        assert.same({ B }, reads)
        other:out()
        assert.equal(1, #reads)
        for _ = 1, 100 do
            now = now + 8
            nodes:failed(B, "broken", pool)
        end
        nodes:failed(A, "unreachable", pool)
        assert.same({ [A] = true, [B] = true }, other:out())
        assert.same({ 1 + #PEERS, PEERS[4] }, { #reads, reads[#reads] })
    end)

    it("ejects it for longer each time, up to a limit", function()
        local seconds = {}
        for i = 1, 5 do
            nodes:failed(A, "broken", pool)
            seconds[i] = nodes:seconds_left(A)
            now = now + seconds[i]
        end
        assert.same({ 1, 2, 4, 8, 8 }, seconds)
    end)

    it("takes what fails at the same time for one failure", function()
        for _ = 1, 6 do
            nodes:failed(A, "broken", pool)
        end
        assert.equal(1, nodes:seconds_left(A))
        assert.equal(1, counts:times_ejected(A, "broken"))
    end)

    it("remembers as long as it goes on failing", function()
        for _ = 1, 20 do
            nodes:failed(A, "broken", pool)
            now = now + 10
        end
        nodes:chosen(A)
        assert.is_false(may_take(A)) -- one trial at a time, all the while
    end)

    it("ejects no node where it is switched off", function()
        nodes = open { first = 0 }
        assert.is_false(nodes:failed(A, "unreachable", pool))
        assert.is_true(may_take(A))
    end)

    it("then lets one request try it, until that has ended", function()
        nodes:failed(A, "broken", pool)
        now = now + 1.5
        assert.is_true(may_take(A))
        nodes:chosen(A)
        assert.is_false(may_take(A))
        nodes:succeeded(A)
        assert.is_true(may_take(A))
        nodes:failed(A, "broken", pool)
        assert.equal(1, nodes:seconds_left(A)) -- its failures before are forgotten
    end)

    it("remembers the failures of a node whose good answers prove little", function()
        nodes:failed(A, "errors", pool)
        now = now + 1.5
        nodes:chosen(A)
        nodes:succeeded(A)
        assert.is_true(may_take(A))
        assert.is_nil(nodes:cause(A))
        nodes:chosen(A)
        assert.is_true(may_take(A)) -- it is no trial any more
        nodes:failed(A, "errors", pool)
        assert.equal(2, nodes:seconds_left(A))
        now = now + 62
        nodes:failed(A, "errors", pool)
        assert.equal(1, nodes:seconds_left(A))
    end)

    it("ejects it for much longer where each trial is a request that probably fails", function()
        local seconds = {}
        for i = 1, 9 do
            nodes:failed(A, "refusals", pool)
            seconds[i] = nodes:seconds_left(A)
            now = now + seconds[i] + 59
        end
        assert.same({ 1, 2, 4, 8, 16, 32, 64, 96, 96 }, seconds)
    end)

    it("lets another one try when the first has taken too long", function()
        nodes:failed(A, "broken", pool)
        now = now + 1.5
        nodes:chosen(A)
        now = now + 10.5
        assert.is_true(may_take(A))
    end)

    it("ejects no node whose trial has failed if too many others are out meanwhile", function()
        nodes:failed(A, "errors", pool)
        now = now + 1.1
        for _, peer in ipairs { PEERS[2], PEERS[3] } do
            assert.is_true(nodes:failed(peer, "errors", pool))
        end
        assert.is_true(nodes:chosen(A))
        assert.is_false(nodes:failed(A, "errors", pool))
        nodes:trial_ended(A)
        assert.same({ true, false, false, true }, taken())
        assert.is_true(nodes:chosen(A)) -- one request at a time
        assert.is_false(may_take(A))
    end)

    it("does not limit a node that never failed", function()
        nodes:failed(B, "broken", pool)
        nodes:chosen(A)
        assert.is_true(may_take(A))
    end)

    it("forgets", function()
        nodes:failed(A, "broken", pool)
        now = now + 61
        assert.is_nil(next(nodes:out()))
        assert.is_nil(nodes:cause(A))
    end)

    it("ends in time when somebody sets the wall clock", function()
        nodes:failed(A, "broken", pool)
        dict.now = -3600 -- by which a dictionary forgets
        now = now + 1.5
        assert.is_true(may_take(A))
        nodes:chosen(A)
        now = now + 10.5
        assert.is_true(may_take(A))
    end)

    --- The causes of failures of A, B, … in this order, the settings, and which of them get requests then.
    for name, case in pairs {
        ["half of a pool at most"] = { { "errors", "broken", "errors" }, {}, { false, false, true, true } },
        ["as many as it is told to"] = { { "errors", "errors" }, { most_percent = 25 }, { false, true, true, true } },
        ["one of several in any case"] = { { "errors", "errors" }, { most_percent = 0 }, { false, true, true, true } },
        ["never all"] = {
            { "errors", "errors", "errors", "errors" },
            { most_percent = 100 },
            { false, false, false, true },
        },
        ["others beside those that cannot be reached"] = {
            { "unreachable", "unreachable", "errors", "errors" },
            {},
            { false, false, false, true },
        },
        ["none beside others that cannot be reached, where it is the last"] = {
            { "unreachable", "unreachable", "unreachable", "errors" },
            { most_percent = 100 },
            { false, false, false, true },
        },
        ["all that cannot be reached"] = {
            { "unreachable", "unreachable", "unreachable", "unreachable" },
            {},
            { false, false, false, false },
        },
    } do
        local causes, settings, expected = unpack(case)
        it("takes out " .. name, function()
            nodes = open(settings)
            for i, cause in ipairs(causes) do
                nodes:failed(PEERS[i], cause, pool)
            end
            assert.same(expected, taken())
        end)
    end

    it("counts a node on trial as one that is out, and lets it fail again", function()
        nodes:failed(A, "errors", pool)
        nodes:failed(B, "errors", pool)
        now = now + 1.5
        nodes:chosen(A)
        nodes:chosen(B)
        assert.is_false(nodes:failed(PEERS[3], "errors", pool))
        assert.is_true(nodes:failed(A, "errors", pool))
    end)

    it("does not count nodes that may get their trials", function()
        nodes:failed(A, "errors", pool)
        nodes:failed(B, "errors", pool)
        now = now + 1.5
        assert.is_true(nodes:failed(PEERS[3], "errors", pool))
        nodes:chosen(A)
        assert.is_false(nodes:failed(B, "errors", pool)) -- its trial has not begun
    end)

    it("does not count nodes that serve nobody", function()
        pool.nodes[3].effective_weight, pool.nodes[4].effective_weight = 0, 0
        assert.is_true(nodes:failed(A, "errors", pool))
        assert.is_false(nodes:failed(B, "errors", pool))
    end)

    it("leaves nothing of nodes that have left the list", function()
        nodes:failed(B, "broken", pool)
        local keys = #dict:get_keys()
        nodes:failed(A, "broken", pool)
        counts:keep_only { B }
        assert.equal(keys + 1, #dict:get_keys()) -- one of the last changes, of which few are kept
    end)
end)
