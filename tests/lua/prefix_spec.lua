local new_dict = require "fake_dict"
local prefix = require "vllm_nginx_lb.prefix"

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

local function marks(body, bytes)
    return prefix.marks(body, bytes or 16 * BLOCK, hash)
end

describe("prefix", function()
    it("marks whole blocks, each with all before it", function()
        assert.same({ "a", "ab", "abc" }, marks(text("a", "b", "c") .. "rest"))
        assert.same({}, marks(text "a":sub(2)))
        assert.same({}, marks "")
    end)

    it("looks at the beginning alone", function()
        assert.same({ "a", "ab" }, marks(text("a", "b", "c"), 2 * BLOCK))
        assert.same({ "a" }, marks(text("a", "b", "c"), 2 * BLOCK - 1))
    end)

    it("finds the nodes that were sent the most of it", function()
        local dict = new_dict()
        assert.same({}, prefix.cached(dict, marks(text("a", "b"))))
        prefix.note(dict, marks(text("a", "b", "c")), "node-1", 60)
        prefix.note(dict, marks(text("a", "x")), "node-2", 60)
        assert.same({ ["node-1"] = 3 * BLOCK }, prefix.cached(dict, marks(text("a", "b", "c", "d"))))
        assert.same({ ["node-2"] = 2 * BLOCK }, prefix.cached(dict, marks(text("a", "x", "c"))))
        assert.same({ ["node-1"] = BLOCK, ["node-2"] = BLOCK }, prefix.cached(dict, marks(text("a", "y"))))
        assert.same({}, prefix.cached(dict, marks(text("b", "c"))))
    end)

    it("knows the last sixteen nodes of what all have in common", function()
        local dict = new_dict()
        for i = 1, 20 do
            prefix.note(dict, marks(text "a"), "node-" .. i, 60)
        end
        prefix.note(dict, marks(text "a"), "node-9", 60)
        local found, count = prefix.cached(dict, marks(text("a", "b"))), 0
        for _ in pairs(found) do
            count = count + 1
        end
        assert.equal(16, count)
        assert.is_nil(found["node-4"])
        assert.equal(BLOCK, found["node-9"])
        assert.equal(BLOCK, found["node-20"])
    end)

    it("forgets", function()
        local dict = new_dict()
        prefix.note(dict, marks(text "a"), "node-1", 60)
        dict.now = 61
        assert.same({}, prefix.cached(dict, marks(text "a")))
    end)
end)
