local cjson = require "cjson"
local json_walk = require "vllm_nginx_lb.json_walk"
local prompt_marks = require "vllm_nginx_lb.prompt_marks"

-- Hashes of which a test sees what they are of. nginx has real ones.
local HASHES = {
    mark = function(text)
        return text
    end,
    part = function(text, first, last)
        return text:sub(first, last)
    end,
}
local WINDOW = 32 * 1024

--- The marks of a body that comes in windows of so many bytes: marks, ends, bytes of prompt.
local function read(body, bytes)
    local marks, readers = prompt_marks.new(HASHES), {}
    marks:join(readers)
    local walk = json_walk.new(readers)
    for at = 1, #body, bytes or WINDOW do
        walk:see(body:sub(at, at + (bytes or WINDOW) - 1))
    end
    return marks:finish()
end

--- JSON of an object with its members in this order: key, value, key, value …
local function object(...)
    local given, members = { ... }, {}
    for i = 1, #given, 2 do
        members[#members + 1] = cjson.encode(given[i]) .. ": " .. cjson.encode(given[i + 1])
    end
    return "{" .. table.concat(members, ", ") .. "}"
end

--- A text of so many bytes in which no part comes twice.
local function text_of(bytes, seed)
    local parts, length = {}, 0
    while length < bytes do
        parts[#parts + 1] = ("%s %d \"quoted\"\n"):format(seed or "text", #parts)
        length = length + #parts[#parts]
    end
    return table.concat(parts):sub(1, bytes)
end

--- A payload of so many bytes.
local function base64_of(bytes, seed)
    return (text_of(2 * bytes, seed):gsub("[^%w]", "+")):sub(1, bytes)
end

local function message(role, content)
    return { role = role, content = content }
end

--- How many marks two lists have in common, from the first on.
local function common(one, other)
    local count = 0
    while one[count + 1] and one[count + 1] == other[count + 1] do
        count = count + 1
    end
    return count
end

local SYSTEM = text_of(3000, "system")
local TOOLS = { { type = "function", ["function"] = { name = "read", description = text_of(2500, "tool") } } }
local TURN = { message("user", text_of(6000, "question")), message("assistant", text_of(4000, "answer")) }
local NEXT = { TURN[1], TURN[2], message("user", text_of(5000, "next")) }

describe("marks of a prompt", function()
    it("stand at distances that grow", function()
        for at, distance in pairs {
            [0] = 1024,
            [16384] = 1024,
            [32767] = 1024,
            [32768] = 2048,
            [2 ^ 20] = 2 ^ 16,
            [2 ^ 21 - 1] = 2 ^ 16,
        } do
            assert.equal(distance, prompt_marks.distance(at))
        end
        local _, ends, bytes = read(object("prompt", text_of(600000)))
        for i, at in ipairs(ends) do
            local before = ends[i - 1] or 0
            assert.equal(before + prompt_marks.distance(before), at)
        end
        assert.is_true(bytes - ends[#ends] < prompt_marks.distance(ends[#ends]))
        assert.equal(#cjson.encode(text_of(600000)), bytes)
        assert.is_true(#ends > 80 and #ends < 112)
    end)

    it("stand at about these distances where a prompt has several values", function()
        local _, ends = read(object("messages", NEXT, "tools", TOOLS, "system", text_of(50000)))
        for i, at in ipairs(ends) do
            local before = ends[i - 1] or 0
            local distance = prompt_marks.distance(before)
            assert.is_true(at - before >= distance and at - before < distance * 1.25)
        end
    end)

    it("begin with the marks of the turn before", function()
        for name, keys in pairs {
            ["OpenAI's chat"] = { "messages" },
            ["Anthropic's messages"] = { "messages", "system", SYSTEM, "tools", TOOLS },
            ["Responses"] = { "input", "instructions", SYSTEM, "tools", TOOLS },
        } do
            local function body(turns)
                return object("model", "m", keys[1], turns, "stream", true, unpack(keys, 2))
            end
            local before, ends = read(body(TURN))
            local marks = read(body(NEXT))
            assert.equal(#before, common(before, marks), name)
            assert.is_true(ends[#ends] > 10000 and #marks > #before + 3, name)
        end
    end)

    it("are of the prompt, not of the envelope or the order of keys", function()
        local small = { read(object("model", "m", "tools", TOOLS, "system", SYSTEM, "messages", NEXT)) }
        assert.is_true(#small[1] > 15)
        for _, body in ipairs {
            object("messages", NEXT, "system", SYSTEM, "tools", TOOLS, "max_tokens", 7, "stream", true),
            object("system", SYSTEM, "metadata", { user_id = text_of(5000) }, "messages", NEXT, "tools", TOOLS),
            object("user", text_of(999), "tools", TOOLS, "messages", NEXT, "input", cjson.null, "system", SYSTEM),
            object("tools", {}, "tools", TOOLS, "system", SYSTEM, "messages", TURN, "messages", NEXT),
            "\n" .. object("messages", NEXT, "system", SYSTEM, "tools", TOOLS):gsub("}$", "\n}\n"),
        } do
            assert.same(small, { read(body) })
        end
    end)

    it("differ from where the prompt differs", function()
        local function body(tools, system, salt)
            return object("messages", NEXT, "tools", tools, "system", system, "cache_salt", salt or cjson.null)
        end
        local marks = read(body(TOOLS, SYSTEM))
        assert.equal(0, common(marks, read(body({}, SYSTEM))))
        assert.equal(2, common(marks, read(body(TOOLS, "x" .. SYSTEM))))
        assert.equal(0, common(marks, read(body(TOOLS, SYSTEM, "salt"))))
        local count = common(marks, read(body(TOOLS, SYSTEM:sub(1, -2) .. "?"))) -- the end of a value that has no mark
        assert.is_true(count >= 4 and count <= 6)
        assert.equal(0, common(read(object("input", SYSTEM)), read(object("instructions", SYSTEM))))
    end)

    it("are the same wherever windows begin", function()
        local image = { { type = "image_url", image_url = { url = "data:image/png;base64," .. base64_of(9000) } } }
        local turns = { TURN[1], message("user", image), NEXT[3] }
        local body = object("n", 1, "messages", turns, "tools", TOOLS, "prompt", { 1, 2, 3 })
        local expected = { read(body) }
        assert.is_true(#expected[1] > 10)
        for _, bytes in ipairs { 1, 2, 3, 7, 16, 100, 127, 255, 1000, 1024, 4095, 4097, 9001 } do
            assert.same(expected, { read(body, bytes) })
        end
        for begin = 1, 50 do
            assert.same(expected, { read((" "):rep(begin) .. body, 97 * begin) })
        end
    end)

    for name, value in pairs {
        ["a sound's key"] = '{"input_audio": {"data": "%s"}}',
        ["an image's key"] = '{"image_url": {"url": "data:image/png;base64,%s"}}',
    } do
        it("are the same wherever a window ends in " .. name, function()
            local before = '{"messages": [{"content": ['
            local body = before .. value:format(base64_of(40000)) .. "]}]}"
            local expected = { read(body) }
            assert.is_true(expected[3] < 4200)
            for bytes = #before, #before + #value do
                assert.same(expected, { read(body, bytes) }, bytes)
                assert.same(expected, { read((" "):rep(WINDOW - bytes) .. body) }, bytes)
            end
        end)
    end

    it("are of token ids and of lists of texts, too", function()
        local ids = {}
        for i = 1, 2000 do
            ids[i] = i * 7919 % 150000
        end
        local marks, _, bytes = read(object("prompt", ids, "max_tokens", 3))
        ids[#ids + 1] = 5
        assert.equal(#marks, common(marks, read(object("prompt", ids))))
        assert.is_true(#marks >= 10 and bytes == #cjson.encode(ids) - 2)
        assert.equal(3, #read(object("input", { text_of(3000), "x" })))
    end)

    it("are none where a body is no object, or has no prompt", function()
        for _, body in ipairs { "", "[" .. cjson.encode(SYSTEM) .. "]", "--x\r\n" .. SYSTEM, object("file", SYSTEM) } do
            assert.same({ {}, {} }, { read(body) })
        end
        assert.same({ {}, {}, 6 }, { read(object("prompt", "text", "n", 1)) })
    end)

    describe("of a prompt with a payload", function()
        local function parts_of(data)
            return {
                ["chat, image"] = { type = "image_url", image_url = { url = "data:image/png;base64," .. data } },
                ["chat, sound"] = { type = "input_audio", input_audio = { data = data, format = "wav" } },
                ["chat, file"] = { type = "file", file = { file_data = "data:application/pdf;base64," .. data } },
                ["chat, video, in short"] = { type = "video_url", video_url = "data:video/mp4;base64," .. data },
                ["chat, sound by URL"] = { type = "audio_url", audio_url = { url = "data:audio/wav;base64," .. data } },
                ["Responses, image"] = { type = "input_image", image_url = "data:image/png;base64," .. data },
                ["Anthropic, image"] = { type = "image", source = { type = "base64", data = data } },
            }
        end

        local function body(part)
            local turns = { message("user", text_of(3000, "before")), message("user", { part }), NEXT[3] }
            return object("messages", turns)
        end

        for name in pairs(parts_of "") do
            it("count little of it: " .. name, function()
                local small, large = parts_of(base64_of(2000))[name], parts_of(base64_of(200000))[name]
                local _, _, without = read(body(parts_of("")[name]))
                local _, _, some = read(body(small))
                local _, ends, bytes = read(body(large))
                assert.is_true(some >= without + 1990)
                assert.is_true(bytes >= without + 4000 and bytes <= without + 4096)
                assert.is_true(ends[#ends] <= bytes and ends[#ends] > bytes - 1280)
            end)

            it("differ behind another one: " .. name, function()
                local data = base64_of(200000)
                local marks, ends = read(body(parts_of(data)[name]))
                for _, at in ipairs { 1, 4095, 4096, 5000, 100000, 199999 } do
                    local other = parts_of(data:sub(1, at - 1) .. "/" .. data:sub(at + 1))[name]
                    local count = common(marks, read(body(other)))
                    assert.is_true(ends[count] >= 2000 and ends[count] < 9000)
                    assert.is_true(#marks > count + 2)
                end
                assert.equal(#marks, common(marks, read(body(parts_of(data)[name]), 5001)))
            end)
        end

        for name, value in pairs {
            ["a prompt"] = '"prompt": "data:;base64,%s"',
            ["a part of a prompt"] = '"prompt": [{"url": "data:;base64,%s"}]',
            ["a tool"] = '"tools": [{"function": {"parameters": {"data": "%s"}}}]',
            ["a tool with a URL"] = '"tools": [{"url": "data:;base64,%s"}]',
            ["instructions"] = '"instructions": "data:;base64,%s"',
            ["an input"] = '"input": "data:;base64,%s"',
            ["a list of inputs"] = '"input": ["data:;base64,%s"]',
            ["a message"] = '"messages": [{"role": "user", "content": "data:;base64,%s"}]',
            ["a part of a message"] = '"messages": [{"content": [{"type": "text", "text": "data:;base64,%s"}]}]',
        } do
            it("count text that begins as a payload: " .. name, function()
                local words = ("real words of a prompt. "):rep(20000)
                local _, _, bytes = read("{" .. value:format(words) .. "}")
                assert.is_true(bytes >= #words)
            end)
        end

        it("count texts that only look like it", function()
            local data = base64_of(20000)
            for _, text in ipairs { data, "see data:image/png;base64," .. data, "data:text/plain," .. data } do
                local _, _, bytes = read(object("messages", { message("user", text) }))
                assert.is_true(bytes > 20000)
            end
        end)

        it("know it with escapes and blanks", function()
            for _, value in ipairs {
                '{"data" :\n"%s"}',
                '{"url": "data:image\\/png;base64,%s"}',
                '{"image_url"  :\n    "data:a/b;base64,%s"}',
            } do
                local _, _, bytes = read(('{"messages": [%s]}'):format(value:format(base64_of(90000))))
                assert.is_true(bytes < 4200)
            end
        end)
    end)

    it("keep little of a body, however long", function()
        local count = 0
        local quiet = {
            mark = HASHES.mark,
            part = function()
                count = count + 1
                return count
            end,
        }
        for _, text in ipairs { "A", "[", "\\", '"', ",", '"a":', '"tools":"",', '"data":"' } do
            local piece = text:rep(2 ^ 16 / #text)
            local marks, readers = prompt_marks.new(quiet), {}
            marks:join(readers)
            local walk = json_walk.new(readers)
            walk:see '{"messages": ["'
            collectgarbage()
            local before = collectgarbage "count"
            for _ = 1, 200 do
                walk:see(piece)
            end
            collectgarbage()
            assert.is_true(collectgarbage "count" - before < 200 * 64 / 40, text)
            assert.is_true(#marks:finish() < 180)
        end
    end)
end)
