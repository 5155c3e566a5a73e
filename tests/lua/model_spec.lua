local cjson = require "cjson"
local json_walk = require "vllm_nginx_lb.json_walk"
local model = require "vllm_nginx_lb.model"

--- A search for the model, and the walk that it needs.
local function search()
    local found, readers = model.new(), {}
    found:join(readers)
    return found, json_walk.new(readers)
end

--- The model of a body that comes in pieces of so many bytes.
local function model_of(body, bytes)
    local found, walk = search()
    for at = 1, #body, bytes or math.max(1, #body) do
        if walk:see(body:sub(at, at + (bytes or #body) - 1)) then
            break
        end
    end
    return walk:is_whole() and found:name() or nil
end

describe("model", function()
    it("is found wherever it stands in the outermost object", function()
        assert.equal("a/b-7b", model_of '{"model":"a/b-7b"}')
        assert.equal("m", model_of '{ "messages": [ {"role": "user", "content": "x"} ], "n": 1, "model" : "m" }')
        assert.equal("m", model_of '{"n": 1, "model":\n"m", "x": {"model": "other"}}')
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
            assert.is_nil(model_of(body), body)
        end
    end)

    it("may be written with escapes, but is no book", function()
        assert.equal("org/small-7b", model_of '{"model": "org\\/small-7b"}')
        assert.equal("mA", model_of '{"mod\\u0065l": "m\\u0041"}')
        assert.equal(("m"):rep(256), model_of('{"model": "' .. ("m"):rep(256) .. '"}'))
        assert.is_nil(model_of('{"model": "' .. ("m"):rep(257) .. '"}'))
        assert.is_nil(model_of '{"model": "\\x"}')
    end)

    it("is the last of several, as for the node", function()
        assert.equal("b", model_of '{"model": "a", "x": 1, "model": "b"}')
        assert.is_nil(model_of '{"model": "a", "model": 7}')
    end)

    it("is found wherever pieces begin", function()
        for _, body in ipairs {
            ' \239\187\191 {"n": {"model": "x"}, "model" :\n "a/b-7b" }',
            '{"x": "\\\\\\"", "mod\\u0065l": "a\\/b-7b", "y": [1, {}]}',
            '{"a\\\\": "\\\\", "model": "a/b-7b", "\\"": "model"}',
        } do
            for bytes = 1, #body do
                assert.equal("a/b-7b", model_of(body, bytes), body .. " in pieces of " .. bytes)
            end
        end
        for bytes = 1, 20 do
            assert.is_nil(model_of('{"model": "a", "model":  7}', bytes))
        end
    end)

    it("ends the search where the answer is known", function()
        for piece, is_over in pairs {
            ['{"model": "m"}'] = true, -- the object has ended
            ["--boundary\r\n"] = true, -- there is no object
            ['{"model": "m",'] = false, -- another one may follow
            [" \n"] = false,
        } do
            local _, walk = search()
            assert.equal(is_over, walk:see(piece), piece)
        end
    end)

    it("keeps little of a body, however long", function()
        for _, text in ipairs { "A", "[", "\\", " " } do
            local piece = text:rep(2 ^ 16)
            local found, walk = search()
            walk:see '{"model": "m", "'
            collectgarbage()
            local before = collectgarbage "count"
            for _ = 1, 200 do
                walk:see(piece)
            end
            collectgarbage()
            assert.is_true(collectgarbage "count" - before < 64)
            assert.equal("m", found:name())
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
            assert.equal(expected, model_of(cjson.encode(body), math.random(40)))
        end
    end)
end)
