local output = require "vllm_nginx_lb.output"

local STREAM = "text/event-stream; charset=utf-8"
-- Each case: what a node sends before the first output, and what carries it.
local CASES = {
    { "a completion", "", 'data: {"choices":[{"text":"word "}]}\n\n' },
    { "a chat", "", 'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n' },
    { "lines that end with CR LF", ": wait\r\n\r\n", 'data: {"choices":[]}\r\n\r\n' },
    { "comments while the client waits", (": keep-alive\n\n"):rep(5), 'data: {"choices":[]}\n\n' },
    {
        "responses",
        'event: response.created\ndata: {"response":{"instructions":"'
            .. ("x"):rep(300)
            .. '"},"type":"response.created"}\n\n'
            .. "event: response.queued\ndata: {}\n\n"
            .. 'event: response.in_progress\ndata: {"sequence_number":1}\n\n',
        'event: response.output_item.added\ndata: {"output_index":0}\n\n',
    },
    {
        "messages",
        'event: message_start\ndata: {"type":"message_start"}\n\nevent: ping\ndata: {"type":"ping"}\n\n',
        'event: content_block_start\ndata: {"index":0}\n\n',
    },
    { "events with numbers and waiting times", "id: 7\nretry: 10\n\n", "data:{}\n\n" },
    { "lines of another format", ": wait\n\n", '{"text": "word "}\n' },
    { "bytes that are no text", "", "\31\139\8\0" .. ("\200"):rep(100) },
    { "an event without data", "data:\n\ndata: \n\n", "data: {}\n\n" },
    { "an event after one without data", "event: ping\n\n", "data: {}\n\n" },
}
local ERRORS = {
    'data: { "error" : {"message": "dead"}}\n\n',
    'data: {"object": "error", "message": "dead"}\n\n',
    "data: [DONE]\r\n\r\n",
    "data:[DONE]\n\n",
    'data: {"error": {"message": "dead"}}\n\n', 'event: error\ndata: {"type":"error"}\n\n',
}

local TOKEN = 'data: {"choices":[{"text":"word "}]}\n\n'
-- What ends a stream that had output.
local FAILURES = {
    'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\ndata: [DONE]\n\n',
    'data: {"object": "error", "message": "dead"}\n\n',
    'event: error\ndata: {"type": "error"}\n\n',
    'event: response.failed\ndata: {"response": {}}\n\n',
}
local NO_FAILURES = {
    'data: {"error": null, "choices": []}\n\n',
    'data: {"choices": [{"text": "\\n\\ndata: {\\"error\\": 1}"}]}\n\n',
    "event: response.output_text.delta\ndata: {}\n\n",
    ': {"error": "no"}\n\n',
}

--- Whether each piece has the first output or follows it.
local function read(pieces)
    local answer, found = assert(output.of(STREAM)), {}
    for i, piece in ipairs(pieces) do
        found[i] = answer:read(piece)
    end
    return found
end

describe("output", function()
    it("is all of an answer that is no event stream", function()
        for _, content_type in ipairs { "application/json", "text/plain", "" } do
            assert.is_nil(output.of(content_type))
        end
        assert.is_nil(output.of(nil))
        assert.is_nil(output.of { "text/event-stream", "text/html" }) -- a header that came twice
        assert.is_truthy(output.of "text/event-stream")
        assert.is_truthy(output.of "Text/Event-Stream;charset=utf-8")
    end)

    it("is all of an event stream that is compressed", function()
        for _, encoding in ipairs { "gzip", "br", { "gzip", "identity" } } do
            assert.is_nil(output.of(STREAM, encoding))
        end
        assert.is_truthy(output.of(STREAM, "identity"))
    end)

    for _, case in ipairs(CASES) do
        local name, before, first = unpack(case)

        for ending, lf in pairs { LF = "\n", ["CR LF"] = "\r\n", CR = "\r" } do
            local nothing, carries = before:gsub("\n", lf), first:gsub("\n", lf)
            local whole = nothing .. carries

            it(("begins after what is none, with %s: %s"):format(ending, name), function()
                assert.same({ false, true }, read { nothing == "" and lf or nothing, carries })
                assert.same({ true }, read { whole })
            end)

            it(("is found wherever pieces are cut, with %s: %s"):format(ending, name), function()
                for cut = 1, #whole - 1 do
                    assert.is_true(read({ whole:sub(1, cut), whole:sub(cut + 1) })[2])
                    assert.is_false(cut <= #nothing and read({ whole:sub(1, cut) })[1])
                end
                local answer, begun_at = assert(output.of(STREAM)), nil
                for i = 1, #whole do
                    if answer:read(whole:sub(i, i)) then
                        begun_at = i
                        break
                    end
                end
                assert.is_true(begun_at > #nothing and begun_at <= #whole)
            end)
        end
    end

    for ending, lf in pairs { LF = "\n", ["CR LF"] = "\r\n", CR = "\r" } do
        for _, case in ipairs(FAILURES) do
            it(("may be followed by an error, with %s: %s"):format(ending, case), function()
                local token, failure = TOKEN:gsub("\n", lf), case:gsub("\n", lf)
                for cut = 1, #failure - 1 do
                    local answer = assert(output.of(STREAM))
                    assert.is_true(answer:read(token:rep(3)))
                    answer:read(failure:sub(1, cut))
                    answer:read(failure:sub(cut + 1))
                    assert.is_true(answer.has_failed)
                end
            end)
        end

        it("may be about errors and have none, with " .. ending, function()
            local answer = assert(output.of(STREAM))
            for _, event in ipairs(NO_FAILURES) do
                assert.is_true(answer:read((TOKEN .. event:rep(20)):gsub("\n", lf) .. ""))
            end
            assert.is_false(answer.has_failed)
        end)
    end

    it("is neither an error nor the end of a stream", function()
        for _, event in ipairs(ERRORS) do
            assert.same({ false, false, false }, read { event, event, "data: [DO" })
        end
        assert.same({ true }, read { 'data: {"error": null, "choices": []}\n\n' })
    end)

    it("may be an error although the status is good, where it is not streamed", function()
        for text, is_error in pairs {
            ['{"error": {"message": "dead"}}'] = true,
            [' {\n "error":"dead"}'] = true,
            ['{"object":"error","message":"dead"}'] = true,
            ['{"type":"error","error":{}}'] = true,
            ['{"detail":"Not Found"}'] = true,
            ['{"message":"no Route matched"}'] = true,
            ["{ }"] = true,
            [""] = false,
            ["{"] = false,
            ["text"] = false,
            ['{"count": 3}'] = false,
            ['{"object":"text_completion"}'] = false,
            ['{"error": null, "id": "1"}'] = false,
            ['{"id": "1", "error": {}}'] = false,
        } do
            for _, kind in ipairs { "application/json", "text/plain", "" } do
                assert.equal(is_error, output.is_error(kind ~= "" and kind or nil, text), text)
            end
            assert.is_true(output.is_error("text/html; charset=utf-8", text))
        end
    end)

    it("that is not streamed is known by its first bytes, however they are cut", function()
        local text, head = ('{"error": "%s"}'):format(("x"):rep(100)), nil
        for i = 1, #text do
            head = output.head(head, text:sub(i, i))
        end
        assert.same({ text:sub(1, 64), text:sub(1, 64) }, { head, output.head(nil, text) })
    end)

    it("has as many events as have data, however they are cut, and comments are none", function()
        local stream = ": wait\n\n" .. ("event: delta\ndata: {}\n\n"):rep(3) .. "data: [DONE]\n\n"
        for size = 1, #stream do
            local it = output.of(STREAM)
            for at = 1, #stream, size do
                it:read(stream:sub(at, at + size - 1))
            end
            assert.equal(4, it.events)
        end
    end)

    it("is looked for with little memory and in few lines", function()
        local answer = assert(output.of(STREAM))
        assert.is_false(answer:read((":"):rep(10 ^ 6)))
        assert.is_true(#answer.line <= 64)
        assert.is_false(answer:read(("\n"):rep(5000)))
        assert.is_true(answer:read(("\n"):rep(10 ^ 6)))
        assert.is_true(answer:read(("\n"):rep(10 ^ 6) .. FAILURES[1]))
        assert.is_false(answer.has_failed) -- it stopped to look into that piece
        answer:read("\n" .. FAILURES[1])
        assert.is_true(answer.has_failed)
    end)

    it("is found in a line that does not end", function()
        assert.same({ false, true }, read { 'data: {"choices"', ("x"):rep(100) })
    end)
end)
