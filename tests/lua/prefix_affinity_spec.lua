local cache_clock = require "vllm_nginx_lb.cache_clock"
local least_work = require "vllm_nginx_lb.least_work"
local new_dict = require "fake_dict"
local prefix = require "vllm_nginx_lb.affinity.prefix"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local tokens = require "vllm_nginx_lb.tokens"

local KIB = 1024
local PER_BYTE = 1 / 8 -- tokens of a prompt
local KV_BYTES = 100 * KIB

local function open_dict(dict)
    return shared_dict.open(dict, { name = "test", advice = "none", log = function() end })
end

--- Marks of a prompt: the letter of each KiB so far.
local function marks_of(letters)
    local marks, ends = {}, {}
    for last = 1, #letters do
        marks[last], ends[last] = letters:sub(1, last), last * KIB
    end
    return marks, ends
end

describe("prefix affinity", function()
    local dict, caches, refusers, affinity, pool

    local function request_of(letters, client)
        local marks, ends = marks_of(letters)
        return {
            marks = marks,
            mark_ends = ends,
            origin = letters:byte(),
            client = client or "somebody",
            tokens_per_byte = PER_BYTE,
        }
    end

    --- A node computes so many bytes.
    local function compute(peer, bytes)
        caches:add(peer, bytes * PER_BYTE)
    end

    --- Send a prompt to a node that has to compute so many bytes for it.
    local function send(letters, peer, bytes)
        compute(peer, bytes or #letters * KIB)
        affinity:note(request_of(letters), { peer = peer })
    end

    local function cached(letters)
        return affinity:cached(request_of(letters), pool)
    end

    before_each(function()
        dict, refusers = new_dict(), {}
        caches = cache_clock.new(open_dict(new_dict()), function()
            return 0
        end)
        affinity = prefix.new {
            dict = open_dict(dict),
            cache_clock = caches,
            has_refused = function(peer, origin)
                return refusers[peer] == origin
            end,
        }
        pool = { nodes = {} }
        for i = 1, 20 do
            pool.nodes[i] = { peer = "node-" .. i, kv_tokens = KV_BYTES * PER_BYTE }
        end
        affinity:on_nodes(pool)
    end)

    describe("of a body", function()
        local function prepared(is_whole, marks, ends, bytes)
            local request = { prompt = { finish = function() return marks, ends, bytes end } }
            affinity:prepare(request, nil, is_whole, function()
                return "somebody"
            end)
            return request
        end

        it("has its marks, its client and the bytes of its prompt", function()
            local request = prepared(true, { "aaaa", "bbbb" }, { KIB, 2 * KIB }, 2500)
            assert.same({ { "aaaa", "bbbb" }, { KIB, 2 * KIB } }, { request.marks, request.mark_ends })
            assert.same({ 2500, "somebody" }, { request.prompt_bytes, request.client })
            assert.is_number(request.origin)
            assert.is_nil(request.prompt)
        end)

        it("without a whole block has no marks, and nothing that ties it to a node", function()
            local request = prepared(true, {}, {}, 5)
            assert.same({ {}, 5 }, { request.marks, request.prompt_bytes })
            assert.is_nil(request.origin)
        end)

        it("that was not read to its end has no marks, and its prompt is unknown", function()
            local request = prepared(false, { "aaaa" }, { KIB }, 2500)
            assert.same({}, request.marks)
            assert.is_nil(request.prompt_bytes)
            assert.same({}, affinity:cached(request, pool))
        end)

        it("is read as it comes", function()
            local request, readers = {}, {}
            affinity:join(request, readers)
            assert.equal(request.prompt, readers.messages)
        end)
    end)

    it("knows of no cached prompt where one with the same beginning was refused", function()
        send("ab", "node-1")
        send("ab", "node-2")
        refusers["node-1"] = ("a"):byte()
        assert.same({ ["node-2"] = 2 * KIB }, cached "ab")
        refusers["node-1"] = ("b"):byte()
        assert.same({ ["node-1"] = 2 * KIB, ["node-2"] = 2 * KIB }, cached "ab")
    end)

    it("finds the nodes that were sent the most of it", function()
        assert.same({}, cached "ab")
        send("abc", "node-1")
        send("ax", "node-2")
        assert.same({ ["node-1"] = 3 * KIB }, cached "abcd")
        assert.same({ ["node-2"] = 2 * KIB }, cached "axc")
        assert.same({ ["node-1"] = KIB, ["node-2"] = KIB }, cached "ay")
        assert.same({}, cached "bc")
    end)

    it("keeps sessions apart that begin alike", function()
        for i = 1, 20 do
            send("tools" .. string.char(64 + i), "node-" .. i)
        end
        for i = 1, 20 do
            assert.same({ ["node-" .. i] = 6 * KIB }, cached("tools" .. string.char(64 + i) .. "!"))
        end
    end)

    describe("with least work", function()
        local settings, totals = { stream_bytes = 1000, ingresses = 1 }, nil

        --- Send a question of 1 KiB, without a mark of its own, about a document of 60 KiB; tell the node.
        local function ask()
            local request = request_of(("d"):rep(60))
            request.bytes, request.cached = 61 * KIB, affinity:cached(request, pool)
            local node = least_work.best(pool.nodes, totals, request, settings, function()
                return true
            end, function()
                return 1
            end)
            local cost = least_work.cost(request, node)
            local slot = 2 * node.slot
            totals[slot], totals[slot + 1] = totals[slot] + cost, totals[slot + 1] + 1
            compute(node.peer, cost)
            affinity:note(request, node)
            return node.peer
        end

        before_each(function()
            totals = {}
            for i, node in ipairs(pool.nodes) do
                node.slot, node.effective_weight = i - 1, 1
                totals[2 * i - 2], totals[2 * i - 1] = 0, 0
            end
        end)

        it("keeps a hot prefix on one node while that is idle", function()
            local first = ask()
            for _ = 1, 20 do
                for slot = 0, 2 * #pool.nodes - 1 do
                    totals[slot] = 0
                end
                assert.equal(first, ask())
            end
        end)

        it("spreads a hot prefix over as many nodes as it needs", function()
            local asked, count, open = {}, 0, 0
            while count < #pool.nodes do
                open = open + 1
                assert.is_true(open < 2000)
                local peer = ask()
                count = count + (asked[peer] and 0 or 1)
                if not asked[peer] then
                    local slot = 2 * (tonumber(peer:match "%d+") - 1)
                    totals[slot] = totals[slot] - 61 * KIB -- it has computed the document
                end
                asked[peer] = true
            end
            assert.is_true(open > 10 * #pool.nodes, open) -- each node gets several before the next one computes it
        end)
    end)

    it("knows the last sixteen nodes of what all have in common", function()
        for i = 1, 20 do
            send("a", "node-" .. i)
        end
        send("a", "node-9", 0)
        local found, count = cached "ab", 0
        for _ in pairs(found) do
            count = count + 1
        end
        assert.equal(16, count)
        assert.is_nil(found["node-4"])
        assert.equal(KIB, found["node-9"])
        assert.equal(KIB, found["node-20"])
    end)

    it("forgets when a node has computed so much since that the prompt has no room in its KV cache", function()
        send("abc", "node-1")
        send("abc", "node-2")
        compute("node-1", KV_BYTES - 3 * KIB)
        assert.same({ ["node-1"] = 3 * KIB, ["node-2"] = 3 * KIB }, cached "abc")
        caches:add("node-1", 1)
        assert.same({ ["node-2"] = 3 * KIB }, cached "abc")
        compute("node-2", KV_BYTES)
        assert.same({ ["node-1"] = 2 * KIB }, cached "abc")
        compute("node-1", KV_BYTES)
        assert.same({}, cached "abc")
    end)

    it("forgets the end of a prompt first", function()
        send("abc", "node-1")
        for _, bytes in ipairs { 3 * KIB, 2 * KIB, KIB } do
            compute("node-1", KV_BYTES - bytes - caches:of "node-1" / PER_BYTE + 3 * KIB)
            assert.same({ ["node-1"] = bytes }, cached "abc")
        end
    end)

    it("never has more of a prompt than the KV cache of a node", function()
        local long = ("x"):rep(200)
        send(long, "node-1")
        assert.same({ ["node-1"] = KV_BYTES }, cached(long))
    end)

    it("remembers longer what a node is sent again", function()
        send("abc", "node-1")
        compute("node-1", KV_BYTES - 3 * KIB)
        send("abd", "node-1", KIB)
        assert.same({ ["node-1"] = 2 * KIB }, cached "abc")
    end)

    it("takes a node whose KV cache has an unknown size for one of the usual size", function()
        send("abc", "node-1")
        pool.nodes[1].kv_tokens = nil
        caches:add("node-1", tokens.KV_TOKENS - 3 * KIB * PER_BYTE)
        assert.same({ ["node-1"] = 3 * KIB }, cached "abc")
        caches:add("node-1", 1)
        assert.same({ ["node-1"] = 2 * KIB }, cached "abc")
    end)

    it("counts the shorter prefix where the nodes of the longest one are gone", function()
        send("abc", "node-1")
        send("ab", "node-2")
        table.remove(pool.nodes, 1)
        affinity:on_nodes(pool)
        assert.same({ ["node-2"] = 2 * KIB }, cached "abc")
    end)

    it("forgets what a node was sent that has left the list and returned", function()
        send("abc", "node-1")
        compute("node-1", -3 * KIB) -- its clock begins anew
        assert.same({}, cached "abc")
    end)

    it("ignores marks of a former version, which have other times", function()
        dict:set("a", "1000 node-1 node-2")
        assert.same({}, cached "a")
        send("a", "node-1")
        assert.same({ ["node-1"] = KIB }, cached "a")
    end)

    describe("with little memory", function()
        local share

        --- The marks of a prompt that begins as no other one: so many, of 16 bytes each.
        local function request_number(number, count, client)
            local request = { marks = {}, mark_ends = {}, origin = number, client = client, tokens_per_byte = PER_BYTE }
            for i = 1, count or 1 do
                request.marks[i], request.mark_ends[i] = ("%08d%08d"):format(number, i - 1), i * KIB
            end
            return request
        end

        --- Note prompts of a client.
        local function send_many(client, first, last, count)
            for number = first, last do
                affinity:note(request_number(number, count, client), { peer = "node-1" })
            end
        end

        --- How many of these prompts are remembered.
        local function count_kept(first, last)
            local kept = 0
            for number = first, last do
                kept = kept + (next(affinity:cached(request_number(number), pool)) and 1 or 0)
            end
            return kept
        end

        before_each(function()
            share = affinity.shares.places * 16
            dict.free = 0
        end)

        it("has room for several clients", function()
            assert.is_true(share > 50 and share * 160 < dict.bytes / 4)
        end)

        it("keeps the newest of a client that sends too much", function()
            send_many("noisy", 1, 5 * share)
            assert.equal(share, count_kept(4 * share + 1, 5 * share))
            assert.equal(0, count_kept(1, 4 * share))
        end)

        it("removes no mark of the others", function()
            send_many("quiet", 10001, 10010)
            send_many("noisy", 1, 5 * share)
            send_many("quiet", 10011, 10020)
            send_many("noisy", 1, 5 * share)
            assert.equal(20, count_kept(10001, 10020))
        end)

        for _, count in ipairs { 1, 3, 15, 16 } do
            it("never holds more than a share of a client with prompts of several marks: " .. count, function()
                send_many("noisy", 1, 3 * share, count)
                local found = 0
                for _, key in ipairs(dict:get_keys()) do
                    found = found + (key:find "^%d+$" and 1 or 0)
                end
                assert.is_true(found > share - 32 and found <= share)
            end)
        end

        it("still follows what a client with too much has sent lately", function()
            send_many("noisy", 1, 5 * share)
            affinity:note(request_number(5 * share, 1, "noisy"), { peer = "node-2" })
            local found = affinity:cached(request_number(5 * share), pool)
            assert.same({ ["node-1"] = KIB, ["node-2"] = KIB }, found)
        end)

        it("keeps all where there is room", function()
            dict.free = 4096
            send_many("noisy", 1, 5 * share)
            assert.equal(5 * share, count_kept(1, 5 * share))
        end)

        it("raises no error where the memory cannot take the count", function()
            dict.lacks_memory = "fails"
            send_many("noisy", 1, 5)
            assert.equal(0, count_kept(1, 5))
        end)
    end)

    it("prefers nobody beyond what work says", function()
        assert.is_nil(affinity:preferred())
    end)
end)
