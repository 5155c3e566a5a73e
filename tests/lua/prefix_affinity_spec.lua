local new_dict = require "fake_dict"
local prefix = require "vllm_nginx_lb.affinity.prefix"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local BLOCK = 1024 -- bytes between two marks

--- A mark of which a reader sees what it is of.
local function letters_of(text)
    local letters = {}
    for letter in text:gmatch "." do
        letters[#letters + 1] = letters[#letters] ~= letter and letter or nil
    end
    return table.concat(letters)
end

local function text(...)
    local parts = {}
    for i, letter in ipairs { ... } do
        parts[i] = letter:rep(BLOCK)
    end
    return table.concat(parts)
end

describe("prefix affinity", function()
    local dict, now, refusers, name

    local function open()
        return prefix.new {
            settings = { prefix_seconds = 60 },
            dict = shared_dict.open(dict, { name = "test", advice = "none", log = function() end }),
            now = function()
                return now
            end,
            has_refused = function(peer, origin)
                return refusers[peer] == origin
            end,
        }
    end

    --- A request of a client with this body, as the affinity has prepared it.
    local function request_of(affinity, body, client, is_whole)
        local request = { prompt = {} }
        function request.prompt.finish()
            local marks, ends = {}, {}
            for last = BLOCK, #body, BLOCK do
                marks[#marks + 1] = name((marks[#marks] or "") .. body:sub(last - BLOCK + 1, last))
                ends[#ends + 1] = last
            end
            return marks, ends, #body
        end
        affinity:prepare(request, nil, is_whole ~= false, function()
            return client or "somebody"
        end)
        return request
    end

    local function note(affinity, body, peer, client)
        affinity:note(request_of(affinity, body, client), { peer = peer })
    end

    local function cached(affinity, body)
        return affinity:cached(request_of(affinity, body))
    end

    before_each(function()
        dict, now, refusers, name = new_dict(), 1000, {}, letters_of
    end)

    it("knows of no cached prompt where one with the same beginning was refused", function()
        local affinity = open()
        note(affinity, text("a", "b"), "one:1")
        note(affinity, text("a", "b"), "two:1")
        refusers["one:1"] = request_of(affinity, text("a", "c")).origin
        assert.same({ ["two:1"] = 2 * BLOCK }, cached(affinity, text("a", "b")))
        refusers["one:1"] = request_of(affinity, text("b", "b")).origin
        assert.same({ ["one:1"] = 2 * BLOCK, ["two:1"] = 2 * BLOCK }, cached(affinity, text("a", "b")))
    end)

    it("takes the marks of the prompt, if the body was read to its end", function()
        for is_whole, expected in pairs {
            [true] = { marks = { "a", "ab" }, mark_ends = { BLOCK, 2 * BLOCK }, prompt_bytes = 2 * BLOCK },
            [false] = { marks = {}, mark_ends = {} },
        } do
            local request = request_of(open(), text("a", "b"), "c", is_whole)
            assert.equal(is_whole, request.origin ~= nil)
            assert.equal("c", request.client)
            request.origin, request.client = nil, nil
            assert.same(expected, request)
        end
    end)

    it("reads the prompt of each body", function()
        local request, readers = {}, {}
        open():join(request, readers)
        assert.equal(request.prompt, readers.messages)
    end)

    it("finds the nodes that were sent the most of it", function()
        local affinity = open()
        assert.same({}, cached(affinity, text("a", "b")))
        note(affinity, text("a", "b", "c"), "node-1")
        note(affinity, text("a", "x"), "node-2")
        assert.same({ ["node-1"] = 3 * BLOCK }, cached(affinity, text("a", "b", "c", "d")))
        assert.same({ ["node-2"] = 2 * BLOCK }, cached(affinity, text("a", "x", "c")))
        assert.same({ ["node-1"] = BLOCK, ["node-2"] = BLOCK }, cached(affinity, text("a", "y")))
        assert.same({}, cached(affinity, text("b", "c")))
    end)

    it("knows the last sixteen nodes of what all have in common", function()
        local affinity = open()
        for i = 1, 20 do
            note(affinity, text "a", "node-" .. i)
        end
        note(affinity, text "a", "node-9")
        local found, count = cached(affinity, text("a", "b")), 0
        for _ in pairs(found) do
            count = count + 1
        end
        assert.equal(16, count)
        assert.is_nil(found["node-4"])
        assert.equal(BLOCK, found["node-9"])
        assert.equal(BLOCK, found["node-20"])
    end)

    it("forgets after a time by the clock that nobody sets", function()
        local affinity = open()
        note(affinity, text "a", "node-1")
        dict.now = -3600 -- somebody has set the clock back, so the dictionary keeps the mark
        now = now + 60
        assert.same({ ["node-1"] = BLOCK }, cached(affinity, text "a"))
        now = now + 1
        assert.same({}, cached(affinity, text "a"))
    end)

    it("ignores marks of a former version, which have no time", function()
        local affinity = open()
        dict:set("a", "127.0.0.1:8000 127.0.0.2:8000")
        assert.same({}, cached(affinity, text "a"))
        note(affinity, text "a", "node-1")
        assert.same({ ["node-1"] = BLOCK }, cached(affinity, text "a"))
    end)

    describe("with little memory", function()
        local affinity, share

        --- A body that begins as no other one: so many blocks, with marks of 16 bytes.
        local function body_of(number, blocks)
            return ("%08d"):format(number):rep(BLOCK / 8 * (blocks or 1))
        end

        --- Note bodies of a client.
        local function send(client, first, last, blocks)
            for number = first, last do
                note(affinity, body_of(number, blocks), "node-1", client)
            end
        end

        --- How many of these bodies are remembered.
        local function count_kept(first, last)
            local kept = 0
            for number = first, last do
                kept = kept + (next(cached(affinity, body_of(number))) and 1 or 0)
            end
            return kept
        end

        before_each(function()
            affinity = open()
            name = function(text_so_far)
                local number, blocks = text_so_far:match "(%d%d%d%d%d%d%d%d)(%d%d%d%d%d%d%d%d)"
                return number .. ("%08d"):format(#text_so_far == BLOCK and 0 or tonumber(blocks) % 1000 + 1)
            end
            share = affinity.shares.places * 16
            dict.free = 0
        end)

        it("has room for several clients", function()
            assert.is_true(share > 50 and share * 160 < dict.bytes / 4)
        end)

        it("keeps the newest of a client that sends too much", function()
            send("noisy", 1, 5 * share)
            assert.equal(share, count_kept(4 * share + 1, 5 * share))
            assert.equal(0, count_kept(1, 4 * share))
        end)

        it("removes no mark of the others", function()
            send("quiet", 10001, 10010)
            send("noisy", 1, 5 * share)
            send("quiet", 10011, 10020)
            send("noisy", 1, 5 * share)
            assert.equal(20, count_kept(10001, 10020))
        end)

        for _, blocks in ipairs { 1, 3, 15, 16 } do
            it("never holds more than a share of a client with bodies of several blocks: " .. blocks, function()
                send("noisy", 1, 3 * share, blocks)
                local count = 0
                for _, key in ipairs(dict:get_keys()) do
                    count = count + (key:find "^%d+$" and 1 or 0)
                end
                assert.is_true(count > share - 32 and count <= share)
            end)
        end

        it("still follows what a client with too much has sent lately", function()
            send("noisy", 1, 5 * share)
            note(affinity, body_of(5 * share), "node-2", "noisy")
            assert.same({ ["node-1"] = BLOCK, ["node-2"] = BLOCK }, cached(affinity, body_of(5 * share)))
        end)

        it("keeps all where there is room", function()
            dict.free = 4096
            send("noisy", 1, 5 * share)
            assert.equal(5 * share, count_kept(1, 5 * share))
        end)

        it("raises no error where the memory cannot take the count", function()
            dict.lacks_memory = "fails"
            send("noisy", 1, 5)
            assert.equal(0, count_kept(1, 5))
        end)
    end)

    it("prefers nobody beyond what work says", function()
        assert.is_nil(open():preferred())
    end)
end)
