local new_dict = require "fake_dict"
local prefix = require "vllm_nginx_lb.affinity.prefix"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local BLOCK = prefix.BLOCK_BYTES

--- A hash of which a reader sees what it is of.
local function hash(text)
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
    local dict

    local function open(bytes)
        local settings = { prefix_bytes = bytes or 16 * BLOCK, prefix_seconds = 60 }
        return prefix.new(settings, shared_dict.open(dict, { name = "test" }), hash)
    end

    --- A request with this body, as the affinity has prepared it.
    local function request_of(affinity, body)
        local request = {}
        affinity:prepare(request, nil, {
            read = function()
                return body
            end,
        })
        return request
    end

    local function marks(body, bytes)
        return request_of(open(bytes), body).marks
    end

    local function note(affinity, body, peer)
        affinity:note(request_of(affinity, body), { peer = peer })
    end

    local function cached(affinity, body)
        return affinity:cached(request_of(affinity, body))
    end

    before_each(function()
        dict = new_dict()
    end)

    it("marks whole blocks, each with all before it", function()
        assert.same({ "a", "ab", "abc" }, marks(text("a", "b", "c") .. "rest"))
        assert.same({}, marks(text "a":sub(2)))
        assert.same({}, marks "")
        assert.same({}, marks(nil))
    end)

    it("looks at the beginning alone", function()
        assert.same({ "a", "ab" }, marks(text("a", "b", "c"), 2 * BLOCK))
        assert.same({ "a" }, marks(text("a", "b", "c"), 2 * BLOCK - 1))
    end)

    it("reads no more of a body than it looks at", function()
        local asked
        open(2 * BLOCK):prepare({}, nil, {
            read = function(_, bytes)
                asked = bytes
            end,
        })
        assert.equal(2 * BLOCK, asked)
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

    it("forgets", function()
        local affinity = open()
        note(affinity, text "a", "node-1")
        dict.now = 61
        assert.same({}, cached(affinity, text "a"))
    end)

    it("prefers nobody beyond what work says", function()
        assert.is_nil(open():preferred())
    end)
end)
