local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"

describe("shared_dict", function()
    local fake, said

    local function open(may_forget)
        return shared_dict.open(fake, {
            name = "test",
            may_forget = may_forget,
            advice = "raise something",
            log = function(text)
                said[#said + 1] = text
            end,
        })
    end

    before_each(function()
        fake, said = new_dict(), {}
    end)

    it("writes and reads as the dictionary does", function()
        local dict = open()
        assert.is_true(dict:set("a", 1, 5))
        assert.is_false(dict:add("a", 2))
        assert.equal(3, dict:incr("a", 2))
        assert.equal(7, dict:incr("new", 7))
        dict:delete "new"
        assert.same({ 3, nil }, { dict:get "a", dict:get "new" })
        assert.same({ 0, {} }, { dict:count_full(), said })
        fake.now = 5
        assert.is_nil(dict:get "a")
    end)

    it("counts what dropped something else, and says it once", function()
        local dict = open()
        dict:set("a", 1)
        fake.lacks_memory = "drops"
        dict:set("a", 2) -- in the place that it has
        dict:set("b", 1)
        dict:add("c", 1)
        dict:incr("d", 1)
        assert.equal(3, dict:count_full())
        assert.same({ "the shared dictionary test is full, a write dropped something else; raise something" }, said)
    end)

    it("counts what failed, and says it once", function()
        local dict = open()
        fake.lacks_memory = "fails"
        assert.is_false(dict:set("a", 1))
        assert.is_nil(dict:incr("b", 1))
        assert.equal(2, dict:count_full())
        assert.same({ "the shared dictionary test is full, a write failed (no memory); raise something" }, said)
    end)

    it("does not mind what a cache drops, but counts it", function()
        local dict = open(true)
        fake.lacks_memory = "drops"
        dict:set("a", 1)
        assert.same({ 1, {} }, { dict:count_full(), said })
        fake.lacks_memory = "fails"
        dict:set("b", 1)
        assert.same({ 2, 1 }, { dict:count_full(), #said })
    end)

    it("counts on after a reload", function()
        fake.lacks_memory = "drops"
        open():set("a", 1)
        assert.is_true(open():count_full() >= 1)
    end)
end)
