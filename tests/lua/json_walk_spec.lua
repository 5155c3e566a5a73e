local cjson = require "cjson"
local json_walk = require "vllm_nginx_lb.json_walk"

--- A reader that keeps what it sees.
local function keeper()
    return {
        values = {},
        strings = {},
        begin = function(self, key)
            self.key, self.values[key] = key, ""
        end,
        see = function(self, piece, first, last)
            assert.is_true(1 <= first and first <= last and last <= #piece)
            self.values[self.key] = self.values[self.key] .. piece:sub(first, last)
        end,
        see_string = function(self, piece, first, last, is_end)
            assert.is_true(1 <= first and first - 1 <= last and last <= #piece)
            self.strings[#self.strings + 1] = is_end
            self.values[self.key] = self.values[self.key] .. piece:sub(first, last)
        end,
    }
end

--- Walk through a text in pieces of so many bytes. The reader reads the keys `a`, `b` and `long key`.
local function walk_through(text, bytes)
    local reader = keeper()
    local walk = json_walk.new { a = reader, b = reader, ["long key"] = reader }
    for at = 1, #text, bytes do
        if walk:see(text:sub(at, at + bytes - 1)) then
            break
        end
    end
    return reader, walk
end

describe("a walk", function()
    it("shows values as they are in the text, without the blanks around them", function()
        for text, expected in pairs {
            ['{"a": [1, {"b": "x"}] , "c": "y", "b":"z"}'] = { a = '[1, {"b": "x"}]', b = '"z"' },
            ['\239\187\191 {"c": {"a": 1}, "b"\n:\t{ }\n}'] = { b = "{ }" },
            ['{"a": "q\\"[{\\\\", "b": "\\\\\\"]"}'] = { a = '"q\\"[{\\\\"', b = '"\\\\\\"]"' },
            ['{"a": 7, "b": null}'] = { a = "", b = "" },
            ['{"a": [1], "a": [2]}'] = { a = "[2]" },
            ['{"long \\u006bey": ["]"], "c": "a", "d": "b"}'] = { ["long key"] = '["]"]' },
            ["{}"] = {},
        } do
            for bytes = 1, #text do
                local reader, walk = walk_through(text, bytes)
                assert.same(expected, reader.values, text .. " in pieces of " .. bytes)
                assert.is_true(walk:is_whole())
            end
        end
    end)

    it("is whole with the end of an object alone", function()
        for _, text in ipairs { "", " ", "{", '{"a": [1]', '["a"]', "--boundary", '"a"', '{"a": "}' } do
            for bytes = 1, math.max(1, #text) do
                local _, walk = walk_through(text, bytes)
                assert.is_false(walk:is_whole(), text)
            end
        end
    end)

    it("shows a long string by itself", function()
        local long = ("x"):rep(json_walk.LONG + 1)
        assert.same({ true }, walk_through(('{"a": ["%s", "%s"]}'):format(long, "short"), 2 ^ 16).strings)
        assert.same({}, walk_through(('{"a": ["%s", "%s"]}'):format(long:sub(2), "short"), 2 ^ 16).strings)
        assert.same({ true }, walk_through(('{"c": "%s", "a": "%s"}'):format(long, long), 2 ^ 16).strings)
        assert.same({ false, true }, walk_through('{"a": "xxxxxxxxxx"}', 16).strings)
        assert.same({ false, true }, walk_through('{"a": "xxxxxxx"}', 14).strings)
    end)

    it("agrees with a whole reading of any text", function()
        math.randomseed(1)
        local texts = { "a", 'a"b', "\\", "{", '"a": "m"', "]}", "", ("x"):rep(50) }
        local function value(depth)
            local kind = math.random(depth > 3 and 2 or 4)
            if kind == 1 then
                return texts[math.random(#texts)]
            elseif kind == 2 then
                return math.random(100)
            end
            local found = {}
            for i = 1, math.random(0, 4) do
                found[kind == 4 and i or texts[math.random(#texts)]] = value(depth + 1)
            end
            return found
        end
        for _ = 1, 2000 do
            local body = { a = value(1), b = value(1), c = value(1), [texts[math.random(#texts)]] = value(1) }
            local reader = walk_through(cjson.encode(body), math.random(40))
            for _, key in ipairs { "a", "b" } do
                local expected = type(body[key]) == "number" and "" or cjson.encode(body[key])
                assert.equal(expected, reader.values[key])
            end
        end
    end)
end)
