local cache_clock = require "vllm_nginx_lb.cache_clock"
local choice = require "vllm_nginx_lb.choice"
local ejection = require "vllm_nginx_lb.ejection"
local full_nodes = require "vllm_nginx_lb.full_nodes"
local held_work = require "vllm_nginx_lb.held_work"
local in_flight = require "vllm_nginx_lb.in_flight"
local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local off = require "vllm_nginx_lb.affinity.off"
local open_prompts = require "vllm_nginx_lb.open_prompts"
local outlier = require "vllm_nginx_lb.outlier"
local pending = require "vllm_nginx_lb.pending"
local prefill = require "vllm_nginx_lb.prefill"
local progress = require "vllm_nginx_lb.progress"
local request = require "vllm_nginx_lb.request"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local tokens = require "vllm_nginx_lb.tokens"
local verdict = require "vllm_nginx_lb.verdict"

local SETTINGS = {
    tries = 3,
    stall_seconds = 60,
    stream_bytes = 100,
    ingresses = 1,
    backoff = { first = 1, longest = 8, memory = 60, probe = 10, most_percent = 100 },
    outlier = { row = 3, leavers = 2, leaver_seconds = 5 },
}
-- What may become of a try.
local BROKEN = { status = 502, was_sent = true, has_answer = false }
local UNREACHABLE = { status = 502, was_sent = false, has_answer = false }
local TIMED_OUT = { status = 504, was_sent = true, has_answer = false }
local FULL = { status = 503, was_sent = true, has_answer = true, says_full = true }
local LEFT = { was_sent = true, has_answer = false }

--- An answer.
local function answer(status)
    return { status = status, was_sent = true, has_answer = true }
end

--- The end of an answer that says how many tokens prompt and answer have.
local function usage_of(prompt, output)
    return ('"usage":{"prompt_tokens":%d,"completion_tokens":%d}}'):format(prompt, output)
end

local STREAM, TOKEN = "text/event-stream", 'data: {"choices": []}\n\n'

describe("request", function()
    local fake, work, affinity, caches, rates, speeds, waiting, nodes_out, counts, prompts, held
    local requests, pool, refused, more_tries, said, noted, meanwhile

    --- Nodes node-0, node-1, … of weight 1.
    local function pool_of(count)
        local nodes, addresses = {}, {}
        for i = 1, count do
            local name = "node-" .. i - 1
            nodes[i] = {
                name = name,
                host = name,
                port = 80,
                peer = name .. ":80",
                effective_weight = 1,
                max_conns = 0,
                slot = i - 1,
            }
            addresses[i] = nodes[i].peer
        end
        work:use_nodes(addresses)
        nodes_out:use_nodes(addresses)
        return { name = "test", nodes = nodes }
    end

    --- Pending bytes and streams of each node.
    local function counted()
        local found, totals = {}, work:totals()
        for i = 1, #pool.nodes do
            found[i] = { totals[2 * i - 2], totals[2 * i - 1] }
        end
        return found
    end

    --- Whether a node gets requests.
    local function may_take(name)
        return not nodes_out:out()[name .. ":80"]
    end

    local function sent(bytes)
        local it = requests.accept()
        requests:begin(it, bytes, pool)
        return it, requests:send(it, pool)
    end

    before_each(function()
        fake, refused, more_tries, said, noted, meanwhile = new_dict(), {}, 0, {}, {}, nil
        local dict = shared_dict.open(fake, { name = "test" })
        work = in_flight.open(dict, 1, function()
            return true
        end, function()
            return "0123456789abcdef"
        end)
        local function now()
            return fake.now
        end
        counts, prompts = node_counts.new(dict), open_prompts.new(dict)
        nodes_out = ejection.new(dict, SETTINGS.backoff, now, counts, function() end)
        speeds = prefill.new(dict, 1000)
        caches, rates = cache_clock.new(dict, now), tokens.new(dict, dict)
        held = held_work.new(work, speeds, SETTINGS.stream_bytes, now)
        waiting = pending.new(work, progress.new(work, speeds))
        affinity = off.new()
        affinity.note = function(_, _, node)
            noted[#noted + 1] = node.peer
        end
        local parts = {
            settings = SETTINGS,
            dict = dict,
            in_flight = work,
            open = prompts,
            tokens = rates,
            pending = waiting,
            prefill = speeds,
            ejection = nodes_out,
            counts = counts,
            held = held,
            affinity = affinity,
            cache_clock = caches,
            random = function()
                return 2 -- of several that are as good, the first
            end,
            peers = {
                set_current_peer = function(host)
                    if meanwhile then
                        meanwhile(host)
                    end
                    return not refused[host], refused[host]
                end,
                set_more_tries = function(count)
                    more_tries = more_tries + count
                end,
            },
            now = now,
            log = function(text)
                said[#said + 1] = text
            end,
        }
        parts.full = full_nodes.new(now)
        parts.choice = choice.new(parts)
        parts.outlier = outlier.new(parts)
        parts.verdicts = verdict.new(parts)
        requests = request.follow(parts)
        pool = pool_of(2)
    end)

    it("counts as pending until its first byte, and as a stream until its end", function()
        local it, why = sent(3000)
        assert.same({ "sent", "least work", 1 }, { it.stage, why, it.number })
        assert.same({ { 3000, 1 }, { 0, 0 } }, counted())
        requests:see_headers(it)
        assert.same({ { 3000, 1 }, { 0, 0 } }, counted())
        assert.is_true(requests:see_piece(it, "word", true))
        assert.same({ { 0, 1 }, { 0, 0 } }, counted())
        assert.is_false(requests:see_piece(it, "word", true))
        assert.same({ { 0, 1 }, { 0, 0 } }, counted())
        requests:finish(it.number, answer(200))
        assert.same({ { 0, 0 }, { 0, 0 } }, counted())
        assert.equal("ended", it.stage)
        requests:finish(it.number, answer(200))
        assert.same({ { 0, 0 }, { 0, 0 } }, counted())
        assert.same({}, requests.by_number)
        assert.same({ 1, { "node-0:80" } }, { counts:times_chosen "node-0:80", noted })
    end)

    it("whose answer is not streamed counts as pending for as long as the node probably needs", function()
        local one, two = sent(3000), sent(1000) -- at nodes of a thousand bytes per second
        assert.same({ { 3000, 1 }, { 1000, 1 } }, counted())
        fake.now = 1.1
        waiting:finish_due(fake.now)
        assert.same({ { 3000, 1 }, { 0, 1 } }, counted())
        fake.now = 3.1
        local three = sent(10) -- a choice looks, too
        assert.same({ { 10, 2 }, { 0, 1 } }, counted())
        for _, it in ipairs { one, two, three } do
            requests:see_headers(it, "application/json")
            requests:see_piece(it, '{"id": 1}', true)
            requests:finish(it.number, answer(200))
        end
        assert.same({ { 0, 0 }, { 0, 0 } }, counted())
    end)

    it("waits longer where more is pending", function()
        sent(3000)
        pool = pool_of(1)
        sent(1000)
        fake.now = 3.5
        waiting:finish_due(fake.now)
        assert.same({ { 1000, 2 } }, counted())
        fake.now = 4.1
        waiting:finish_due(fake.now)
        assert.same({ { 0, 2 } }, counted())
    end)

    it("whose answer is streamed counts as pending until its first output", function()
        local it = sent(3000)
        requests:see_headers(it, STREAM)
        fake.now = 50
        waiting:finish_due(fake.now)
        for _, piece in ipairs { ": keep-alive\n\n", "event: response.created\ndata: {}\n\n", "da", "ta" } do
            assert.is_false(requests:see_piece(it, piece, true))
        end
        assert.same({ { 3000, 1 }, { 0, 0 } }, counted())
        assert.is_true(requests:see_piece(it, ": {}\n\n", true))
        assert.same({ { 0, 1 }, { 0, 0 } }, counted())
    end)

    it("teaches how fast its node is when it is streamed, and only then", function()
        local default = speeds:seconds("node-0:80", 4000)
        for i, content_type in ipairs { "application/json", STREAM } do
            pool = pool_of(1)
            local it = sent(4000)
            requests:see_headers(it, content_type)
            fake.now = fake.now + 0.5
            requests:see_piece(it, TOKEN, true)
            requests:finish(it.number, answer(200))
            assert.equal(i == 1, speeds:seconds("node-0:80", 4000) == default)
        end
    end)

    for what, case in pairs {
        ["counts how long its first output took, and was predicted to take when it was sent"] = { STREAM, true, 1 },
        ["counts no time to an answer that is not streamed"] = { "application/json", true, 0 },
        ["counts no time to an error"] = { STREAM, false, 0 },
    } do
        it(what, function()
            local content_type, is_good, count = unpack(case)
            pool = pool_of(1)
            local it = sent(4000) -- at a node of a thousand bytes per second
            speeds:learn("node-0:80", 4000, 60) -- does not change what was predicted
            requests:see_headers(it, content_type)
            fake.now = fake.now + 0.5
            requests:see_piece(it, TOKEN, is_good)
            requests:see_piece(it, TOKEN, is_good)
            assert.same({ count, 4 * count, 0.5 * count }, { counts:first_outputs "node-0:80" })
        end)
    end

    it("of a worker that ends counts no longer as pending, unless it is streamed", function()
        local it = sent(3000)
        sent(1000)
        requests:see_headers(it, STREAM)
        waiting:finish_all()
        assert.same({ { 3000, 1 }, { 0, 1 } }, counted())
    end)

    it("counts a part of a long body that nobody has looked into", function()
        sent(1000000)
        assert.same({ { 65536, 1 }, { 0, 0 } }, counted())
    end)

    it("counts its whole prompt if that is known, less what its node has cached, there and as sent", function()
        affinity.cached = function(_, it, of)
            return of == pool and it.prompt_bytes and { ["node-1:80"] = 150000 } or {}
        end
        local it = requests.accept()
        it.prompt_bytes = 200000
        requests:begin(it, 1000000, pool)
        requests:send(it, pool)
        assert.same({ { 0, 0 }, { 50000, 1 } }, counted())
        assert.same({ 0, 12500 }, { caches:of "node-0:80", caches:of "node-1:80" })
        requests:send(it, pool, BROKEN)
        assert.same({ 50000, 12500 }, { caches:of "node-0:80", caches:of "node-1:80" })
    end)

    it("ages what its node has cached by what was streamed, however it ends", function()
        local it = requests.accept()
        requests:begin(it, 1000, pool)
        requests:send(it, pool)
        local peer = it.peer
        requests:see_headers(it, STREAM)
        requests:see_piece(it, TOKEN:rep(2), true)
        requests:see_piece(it, TOKEN, true)
        assert.equal(250, caches:of(peer))
        requests:finish(it.number, LEFT)
        assert.equal(250 + 3, caches:of(peer))
    end)

    for name, case in pairs {
        ["is not streamed"] = { { "application/json" }, { '{"text":"word",', usage_of(300, 40) }, 40 },
        ["is cut"] = { { "application/json" }, { '{"text":"word","us', usage_of(300, 40):sub(4) }, 40 },
        ["has more tokens than events"] = { { STREAM }, { TOKEN, 'data: {' .. usage_of(300, 40) .. "\n\n" }, 40 },
        ["has fewer"] = { { STREAM }, { TOKEN:rep(5), 'data: {' .. usage_of(300, 2) .. "\n\n" }, 6 },
        ["does not say it"] = { { "application/json" }, { '{"text":"word"}' }, 0 },
        ["is compressed"] = { { "application/json", "gzip" }, { usage_of(300, 40) }, 0 },
    } do
        it("ages what its node has cached by what its answer says of tokens: it " .. name, function()
            local it = requests.accept()
            requests:begin(it, 1000, pool)
            requests:send(it, pool)
            local peer = it.peer
            requests:see_headers(it, unpack(case[1]))
            for _, piece in ipairs(case[2]) do
                requests:see_piece(it, piece, true)
            end
            it.is_complete = true
            requests:finish(it.number, answer(200))
            assert.equal(250 + case[3], caches:of(peer))
        end)
    end

    for events, content_type in pairs { [0] = "application/json", [2] = STREAM } do
        it("believes nothing that an answer says before its end: " .. content_type, function()
            local it = requests.accept()
            it.client, it.prompt_bytes = "somebody", 16384
            requests:begin(it, 1000, pool)
            requests:send(it, pool)
            local peer = it.peer
            requests:see_headers(it, content_type)
            requests:see_piece(it, TOKEN .. 'data: {"tools":[{' .. usage_of(8192, 40) .. "]}\n\n", true)
            requests:finish(it.number, answer(200))
            assert.same({ 4096 + events, tokens.PER_BYTE }, { caches:of(peer), rates:per_byte "test" })
        end)
    end

    --- Send a request, and let its answer say how many tokens the prompt has.
    local function taught(it, count, is_good)
        requests:begin(it, 1000, pool)
        requests:send(it, pool)
        requests:see_headers(it, "application/json")
        it.is_complete = true
        requests:see_piece(it, usage_of(count, 1), is_good ~= false)
        requests:finish(it.number, answer(200))
    end

    it("teaches how many tokens the prompts of its model have", function()
        local it = requests.accept()
        it.client, it.prompt_bytes, it.model = "somebody", 16384, "some-model"
        taught(it, 8192)
        local rate = rates:per_byte("test", "some-model")
        assert.is_true(rate > tokens.PER_BYTE)
        assert.equal(tokens.PER_BYTE, rates:per_byte("test"))
        it = requests.accept()
        it.model = "some-model"
        requests:begin(it, 100000, pool)
        requests:send(it, pool)
        assert.same({ rate, math.ceil(65536 * rate) }, { it.tokens_per_byte, it.cost_tokens })
    end)

    for name, case in pairs {
        ["was not looked into"] = { nil, true },
        ["was answered with an error"] = { 16384, false },
    } do
        it("teaches nothing of prompts when its body " .. name, function()
            local it = requests.accept()
            it.client, it.prompt_bytes = "somebody", case[1]
            taught(it, 8192, case[2])
            assert.equal(tokens.PER_BYTE, rates:per_byte "test")
        end)
    end

    it("is kept by nobody before it is sent to a node", function()
        requests.accept()
        assert.same({}, requests.by_number)
    end)

    it("moves to another node when a try fails, and the failed one is ejected", function()
        local it = sent(3000)
        assert.equal("least work", requests:send(it, pool, UNREACHABLE))
        assert.same({ { 0, 0 }, { 3000, 1 } }, counted())
        assert.is_false(may_take "node-0")
        assert.is_true(may_take "node-1")
        assert.equal(1, counts:times_answered("node-0:80", "unreachable"))
    end)

    it("is tried on each node, and once more on one that had it if nginx asks after a kept connection broke", function()
        local it = sent(100)
        assert.equal(1, more_tries)
        requests:send(it, pool, UNREACHABLE)
        assert.equal(1, more_tries) -- no node is left that has not had it
        assert.equal("last resort", requests:send(it, pool, UNREACHABLE))
        assert.equal(1, more_tries)
        assert.is_nil(requests:send(it, pool, UNREACHABLE))
        assert.same({ { 0, 0 }, { 0, 0 } }, counted())
        assert.equal("accepted", it.stage)
        requests:finish(it.number, BROKEN)
        assert.same({}, requests.by_number)
    end)

    for tries = 1, 4 do
        it(("reaches %d nodes at most, although nginx asks for more"):format(tries), function()
            SETTINGS.tries = tries
            pool = pool_of(6)
            local it = sent(100)
            while requests:send(it, pool, BROKEN) do
                assert.is_true(it.tries <= 6)
            end
            local reached = 0
            for _ in pairs(it.tried) do
                reached = reached + 1
            end
            SETTINGS.tries = 3
            assert.equal(tries, reached)
        end)
    end

    it("goes nowhere else after a time-out, because the node may still work on it", function()
        local it = sent(100)
        assert.is_nil(requests:send(it, pool, TIMED_OUT))
        assert.is_false(may_take "node-0")
        assert.same({ { 0, 0 }, { 0, 0 } }, counted())
    end)

    it("is not tried again after its last resort, but where a node is left", function()
        pool = pool_of(1)
        local it = sent(100)
        assert.equal("last resort", requests:send(it, pool, UNREACHABLE))
        assert.equal(0, more_tries)
        pool = pool_of(2)
        assert.equal("least work", requests:send(it, pool, UNREACHABLE))
        assert.equal(0, more_tries) -- no other is left
    end)

    it("that breaks its connections is its own fault from the second node on", function()
        pool = pool_of(3)
        local it = sent(100)
        requests:send(it, pool, BROKEN)
        assert.same({ false, true }, { may_take "node-0", may_take "node-1" })
        requests:send(it, pool, BROKEN)
        assert.same({ true, true }, { may_take "node-0", may_take "node-1" })
    end)

    it("that breaks a connection and whose client leaves has shown nothing of the node", function()
        pool = pool_of(3)
        local it = sent(100)
        requests:send(it, pool, BROKEN)
        assert.is_false(may_take "node-0")
        requests:finish(it.number, LEFT)
        assert.is_true(may_take "node-0")
    end)

    it("that has no answer in time ejects its node, unless the node answers others meanwhile", function()
        for answered_at, is_in in pairs { [0.5] = true, [0] = false } do
            local it = sent(100)
            local name = it.peer:match "^[^:]*"
            counts:note_output(it.peer, answered_at)
            requests:finish(it.number, TIMED_OUT)
            assert.equal(is_in, may_take(name), answered_at)
        end
    end)

    it("that breaks its connections takes back no ejection that it has not caused, and no failure of before", function()
        pool = pool_of(3)
        nodes_out:failed("node-0:80", "broken", pool)
        fake.now = 1.5
        local it = sent(100) -- the trial
        requests:send(it, pool, BROKEN)
        assert.equal(2, nodes_out:seconds_left "node-0:80")
        requests:send(it, pool, BROKEN)
        assert.same({ 0, "broken" }, { nodes_out:seconds_left "node-0:80", nodes_out:cause "node-0:80" })
        fake.now = 1.6
        assert.is_true(nodes_out:chosen "node-0:80")
        nodes_out:failed("node-0:80", "broken", pool)
        nodes_out:take_back("node-0:80", 1.5)
        assert.equal(2, nodes_out:seconds_left "node-0:80")
    end)

    it("that a full node refuses goes to another one, and ejects nobody", function()
        local it = sent(100)
        assert.equal("least work", requests:send(it, pool, FULL))
        assert.same({ true, "node-1:80" }, { may_take "node-0", it.peer })
        assert.same({ { 200, 0 }, { 100, 1 } }, counted()) -- the full node does not attract the next one
    end)

    it("goes past a node that nginx does not take", function()
        refused["node-0"] = "bad address"
        local it = sent(100)
        assert.same({ "node-1:80", { "node node-0: bad address" } }, { it.peer, said })
        refused["node-1"] = "bad address"
        it = requests.accept()
        requests:begin(it, 1, pool)
        assert.is_nil(requests:send(it, pool))
    end)

    describe("of which a node may have one", function()
        local other

        before_each(function()
            other = in_flight.open(shared_dict.open(fake, { name = "test" }), 2, function()
                return true
            end, function()
                return "0123456789abcdef"
            end)
            other:use_nodes { "node-0:80", "node-1:80" }
            for _, node in ipairs(pool.nodes) do
                node.max_conns = 1
            end
        end)

        it("goes elsewhere when another worker takes the last place at the same time", function()
            meanwhile = function(host)
                meanwhile = nil
                other:add(host .. ":80", 10, 1)
            end
            local it = sent(100)
            assert.same({ "node-1:80", { { 10, 1 }, { 100, 1 } } }, { it.peer, counted() })
            assert.is_nil(it.tried["node-0:80"])
        end)

        it("has no node when the other worker takes each last place, and leaves no count", function()
            meanwhile = function(host)
                other:add(host .. ":80", 0, 1)
            end
            local it, why = sent(100)
            assert.same({ nil, nil, { { 0, 1 }, { 0, 1 } } }, { it.peer, why, counted() })
        end)
    end)

    it("ejects a node whose last answer is a gateway's error, but not one that was left", function()
        local it = sent(100)
        requests:finish(it.number, answer(503))
        assert.is_false(may_take "node-0")
        it = sent(100)
        assert.equal("node-1:80", it.peer)
        requests:finish(it.number, LEFT)
        it = sent(100)
        requests:finish(it.number, answer(500))
        assert.is_true(may_take "node-1")
    end)

    it("forgets a node's failures with a good first byte, not with a bad one", function()
        pool = pool_of(1)
        nodes_out:failed("node-0:80", "unreachable", pool)
        fake.now = 2
        local it = sent(100)
        assert.equal("node-0:80", it.peer)
        requests:see_piece(it, "error", false)
        assert.is_false(may_take "node-0") -- it is on trial
        assert.equal(0, counts:last_output "node-0:80")
        requests:finish(it.number, answer(500))
        assert.is_false(may_take "node-0") -- which has failed
        assert.equal(2, nodes_out:seconds_left "node-0:80")
        fake.now = 20
        it = sent(100)
        requests:see_headers(it, STREAM)
        requests:see_piece(it, TOKEN, true)
        assert.is_true(may_take "node-0")
        assert.equal(20, counts:last_output "node-0:80")
    end)

    -- Whether each answer that is not streamed shows that its node is well.
    for name, case in pairs {
        ["has output"] = { "application/json", '{"id": 1}', 200, true },
        ["is an error"] = { "application/json", '{"error": {}}', 200, false },
        ["is of something else"] = { "application/json", '{"detail": "Not Found"}', 200, false },
        ["is a page"] = { "text/html", "<p>Welcome</p>", 200, false },
        ["has no body"] = { nil, nil, 204, false },
    } do
        it("whose node is on trial shows at its end what the answer shows: it " .. name, function()
            local content_type, text, status, is_well = unpack(case, 1, 4)
            pool = pool_of(1)
            nodes_out:failed("node-0:80", "unreachable", pool)
            fake.now = 2
            local it = sent(100)
            requests:see_headers(it, content_type)
            for i = 1, #(text or "") do
                requests:see_piece(it, text:sub(i, i), true)
            end
            assert.is_false(may_take "node-0")
            it.is_complete = text ~= nil
            requests:finish(it.number, answer(status))
            assert.equal(is_well, nodes_out:cause "node-0:80" == nil)
            assert.equal(is_well and 2 or 0, counts:last_output "node-0:80")
        end)
    end

    it("counts nothing after a lost race for the last place of the last node", function()
        pool.nodes[2].max_conns = 1
        for _, bytes in ipairs { 3000, 50000 } do
            local it = sent(bytes)
            assert.equal("node-0:80", it.peer)
            fake.now = fake.now + 0.01
            meanwhile = function(host)
                if host == "node-1" then
                    meanwhile = nil
                    work:add("node-1:80", 10, 1) -- of another worker
                end
            end
            assert.is_nil(requests:send(it, pool, UNREACHABLE))
            assert.is_nil(it.peer)
            requests:finish(it.number, UNREACHABLE)
            for _ = 1, 20 do
                fake.now = fake.now + 5
                waiting:finish_due(fake.now)
            end
            assert.same({ { 0, 0 }, { 10, 1 } }, counted())
            work:add("node-1:80", -10, -1)
            nodes_out:succeeded("node-0:80")
        end
    end)

    it("that its node refuses takes no room there, and computes nothing", function()
        for _, node in ipairs(pool.nodes) do
            node.kv_left = 1000
        end
        local it = sent(2000)
        local node = pool.nodes[1].peer == it.peer and pool.nodes[1] or pool.nodes[2]
        assert.equal(500, node.kv_left)
        local before = caches:of(node.peer)
        requests:finish(it.number, answer(400))
        assert.equal(1000, node.kv_left)
        assert.equal(before - 500, caches:of(node.peer))
    end)

    it("counts no more of a prompt than the KV cache of its node holds", function()
        pool = pool_of(1)
        pool.nodes[1].kv_tokens = 1000
        local it = sent(60000)
        assert.same({ { 4000, 1 } }, counted())
        assert.same({ 4000, 4000, 1000 }, { it.cost, it.ahead, it.cost_tokens })
        requests:finish(it.number, answer(400))
        fake.now = fake.now + 11
        held:release()
        assert.same({ { 0, 0 } }, counted())
    end)

    for name, try in pairs { ["client leaves"] = LEFT, ["request is bad"] = answer(404), ["node is full"] = FULL } do
        it("lets the next one be the trial when it is one and shows nothing, because the " .. name, function()
            pool = pool_of(1)
            nodes_out:failed("node-0:80", "errors", pool_of(2))
            fake.now = 2
            local older, it = requests.accept(), sent(100)
            assert.is_true(it.is_trial)
            assert.is_false(may_take "node-0")
            requests:begin(older, 100, pool)
            requests:send(older, pool) -- as the last resort
            assert.is_false(older.is_trial)
            requests:finish(older.number, try)
            assert.is_false(may_take "node-0") -- the trial is still under way
            requests:finish(it.number, try)
            assert.is_true(may_take "node-0")
            assert.is_true(sent(100).is_trial)
        end)
    end

    it("that computes nothing says nothing about an engine", function()
        pool = pool_of(1)
        nodes_out:failed("node-0:80", "errors", pool_of(2))
        fake.now = 2
        local it = requests.accept()
        it.is_light = true
        requests:begin(it, 100, pool)
        requests:send(it, pool)
        assert.is_true(may_take "node-0") -- it is no trial
        requests:see_piece(it, "word", true)
        requests:finish(it.number, answer(200))
        assert.same({ 0, "errors" }, { counts:last_output "node-0:80", nodes_out:cause "node-0:80" })
        assert.equal(1, counts:times_answered("node-0:80", "light"))
        assert.equal(0, counts:times_answered("node-0:80", "2xx"))
    end)

    it("holds the work of an error for as long as a good answer takes", function()
        pool = pool_of(1)
        local it = sent(100)
        requests:see_piece(it, "word", true)
        fake.now = 4
        requests:finish(it.number, answer(200))
        it = sent(100)
        requests:see_piece(it, "word", false)
        requests:finish(it.number, answer(500))
        assert.same({ { 200, 0 } }, counted())
        fake.now = 4.5 -- the prompt would be computed
        held:release()
        assert.same({ { 100, 0 } }, counted())
        fake.now = 7.9
        held:release()
        assert.same({ { 100, 0 } }, counted())
        fake.now = 8
        held:release()
        assert.same({ { 0, 0 } }, counted())
    end)

    it("ejects a node that has sent headers and then nothing to anybody for too long", function()
        local it = sent(100)
        fake.now = 61
        requests:eject_stalled()
        assert.is_true(may_take "node-0") -- without headers: an answer that is no stream
        requests:see_headers(it, STREAM)
        assert.is_false(requests:see_piece(it, ": keep-alive\n\n", true)) -- is as good as silence
        counts:note_output("node-0:80", 50)
        requests:eject_stalled()
        assert.is_true(may_take "node-0")
        fake.now = 111
        requests:eject_stalled()
        assert.is_false(may_take "node-0")
        assert.is_true(may_take "node-1")
    end)

    it("ends with a count of zero, whatever becomes of it", function()
        math.randomseed(1)
        local open = {}
        local tries = { BROKEN, UNREACHABLE, TIMED_OUT, FULL, LEFT, answer(200), answer(404), answer(500), answer(502) }
        for _ = 1, 5000 do
            open[#open + 1] = sent(math.random(9000))
            local it = open[math.random(#open)]
            local what = math.random(6)
            if what == 1 then
                requests:see_headers(it, ({ STREAM, "text/plain" })[math.random(2)])
            elseif what == 2 then
                requests:see_piece(it, TOKEN, math.random(2) == 1)
            elseif what == 3 and it.stage ~= "body" then
                requests:send(it, pool, tries[math.random(#tries)])
            elseif what == 4 then
                pool = pool_of(math.random(4))
            else
                local ended = table.remove(open, math.random(#open))
                requests:finish(ended.number, tries[math.random(#tries)])
            end
            fake.now = fake.now + 0.1
            held:release()
        end
        for _, it in ipairs(open) do
            requests:finish(it.number, tries[math.random(#tries)])
        end
        fake.now = fake.now + 11
        held:release()
        pool = pool_of(4)
        assert.same({ { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } }, counted())
        for _, node in ipairs(pool.nodes) do
            assert.equal(0, prompts:at(node.peer))
        end
        assert.same({}, requests.by_number)
    end)
end)
