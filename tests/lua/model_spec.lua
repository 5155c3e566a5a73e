local cjson = require "cjson"
local model = require "vllm_nginx_lb.model"

describe("model", function()
    it("is found wherever it stands in the outermost object", function()
        assert.equal("a/b-7b", model.of '{"model":"a/b-7b"}')
        assert.equal("m", model.of '{ "messages": [ {"role": "user", "content": "x"} ], "n": 1, "model" : "m" }')
        assert.equal("m", model.of '{"n": 1, "model":\n"m", "x": {"model": "other"}}')
    end)

    it("is not what only looks like it", function()
        for _, body in ipairs {
            '{"messages": [{"model": "m"}]}',
            '{"prompt": "\\"model\\": \\"m\\""}',
            '{"prompt": "{\\"model\\": \\"m\\"}"}',
            '{"x": {"model": "m"}}',
            '["model", "m"]',
            '{"model": 7}',
            '{"model": ["m"]}',
            '{"model": {"model": "m"}}',
            '{"x": "model", "y": "m"}',
            '{"model": "m',
            '"model"',
            "",
            "{",
            '}"model":"m"',
        } do
            assert.is_nil(model.of(body), body)
        end
    end)

    it("may be written with escapes, but is no book", function()
        assert.equal("org/small-7b", model.of '{"model": "org\\/small-7b"}')
        assert.equal("mA", model.of '{"mod\\u0065l": "m\\u0041"}')
        assert.equal(("m"):rep(256), model.of('{"model": "' .. ("m"):rep(256) .. '"}'))
        assert.is_nil(model.of('{"model": "' .. ("m"):rep(257) .. '"}'))
        assert.is_nil(model.of '{"model": "\\x"}')
    end)

    it("is the last of several, as for the node", function()
        assert.equal("b", model.of '{"model": "a", "x": 1, "model": "b"}')
        assert.is_nil(model.of '{"model": "a", "model": 7}')
    end)

    it("pauses while it reads what takes long", function()
        for _, body in ipairs {
            '{"x": "' .. ('\\"'):rep(100000) .. '", "model": "m"}',
            '{"x": ' .. ("["):rep(50000) .. ("]"):rep(50000) .. ', "model": "m"}',
            '{"x": "' .. ("\\\\"):rep(50000) .. '", "model": "m"}',
        } do
            local pauses = 0
            assert.equal("m", model.of(body, function()
                pauses = pauses + 1
            end))
            assert.is_true(pauses >= 4)
        end
    end)

    it("agrees with a whole reading of any body", function()
        math.randomseed(1)
        local texts = { "model", "m", 'a"b', "\\", "{", '"model": "m"', "}", "" }
        local function value(depth)
            local kind = math.random(depth > 3 and 3 or 5)
            if kind == 1 then
                return texts[math.random(#texts)]
            elseif kind == 2 then
                return math.random(100)
            elseif kind == 3 then
                return true
            end
            local found = {}
            for i = 1, math.random(0, 4) do
                found[kind == 4 and i or texts[math.random(#texts)]] = value(depth + 1)
            end
            return found
        end
        for _ = 1, 3000 do
            local body = { model = math.random(2) == 1 and "wanted" or nil, other = value(1), x = value(1) }
            local expected = type(body.model) == "string" and body.model or nil
            assert.equal(expected, model.of(cjson.encode(body)))
        end
    end)

    it("takes a body of 20 MB in its stride", function()
        local image = ("A"):rep(20 * 2 ^ 20)
        assert.equal("m", model.of('{"messages": [{"image": "' .. image .. '"}], "model": "m"}'))
    end)
end)
