local usage = require "vllm_nginx_lb.usage"

-- As vLLM 0.32 writes them.
local CHAT = '{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
    .. '"content":"word"}}],"usage":{"prompt_tokens":4096,"total_tokens":4109,"completion_tokens":13,'
    .. '"prompt_tokens_details":{"cached_tokens":4080}},"prompt_logprobs":null}'
local EMBEDDING = '{"object":"list","data":[],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0,'
    .. '"prompt_tokens_details":null}}'
local RESPONSE = '{"id":"resp_1","metadata":null,"tools":[{"parameters":{"properties":{"usage":{"type":"object"},'
    .. '"input_tokens":{"type":"number"}}}}],"usage":{"input_tokens":55,"input_tokens_details":{"cached_tokens":48,'
    .. '"input_tokens_per_turn":[55],"cached_tokens_per_turn":[48]},"output_tokens":21,'
    .. '"output_tokens_details":{"reasoning_tokens":9},"total_tokens":76},"user":null}'
local MESSAGE = '{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}],"usage":'
    .. '{"input_tokens":5,"output_tokens":3,"cache_creation_input_tokens":7,"cache_read_input_tokens":100}}'
local CHUNKS = 'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    .. 'data: {"choices":[],"usage":{"prompt_tokens":8,"total_tokens":10,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
local CONTINUOUS = 'data: {"choices":[],"usage":{"prompt_tokens":8,"total_tokens":9,"completion_tokens":1}}\n\n'
    .. 'data: {"choices":[],"usage":{"prompt_tokens":8,"total_tokens":10,"completion_tokens":2}}\n\n'
local EVENTS = 'event: response.created\ndata: {"response":{"usage":null}}\n\nevent: response.completed\n'
    .. 'data: {"response":{"usage":{"input_tokens":9,"output_tokens":4,"total_tokens":13}}}\n\n'
local MESSAGE_EVENTS = 'event: message_start\ndata: {"message":{"usage":{"input_tokens":60,"output_tokens":0}}}\n\n'
    .. 'event: message_delta\ndata: {"delta":{},"usage":{"input_tokens":12,"output_tokens":6,'
    .. '"cache_read_input_tokens":48}}\n\n'
-- A client has chosen the parameters of a tool. vLLM repeats them before its own `usage`.
local FORGED_USAGE = '"tools":[{"parameters":{"usage":{"input_tokens":16777216,"output_tokens":16777216}}}]'
local FORGED = 'data: {"type":"response.created","response":{' .. FORGED_USAGE .. ',"usage":null}}\n\n'
local FORGED_AT_FIRST = FORGED .. 'data: {"response":{"usage":{"input_tokens":40,"output_tokens":1}}}\n\n'
local HALF = 'event: message_start\ndata: {"message":{"usage":{"input_tokens":60,"output_tokens":0}}}\n\n'
    .. 'event: message_delta\ndata: {"delta":{},"usage":{"output_tokens":6}}\n\n'

describe("usage", function()
    --- What an answer of these pieces says.
    local function read(...)
        local it = usage.of(nil)
        for _, piece in ipairs { ... } do
            it:see(piece)
        end
        return { it.prompt_tokens or "unknown", it.output_tokens }
    end

    for name, case in pairs {
        ["a chat"] = { CHAT, 4096, 13 },
        ["embeddings"] = { EMBEDDING, 7, 0 },
        ["a response"] = { RESPONSE, 55, 21 },
        ["a message whose model chose a key of that name"] = { MESSAGE, 112, 3 },
        ["a stream that ends with it"] = { CHUNKS, 8, 2 },
        ["a stream that has it in each piece"] = { CONTINUOUS, 8, 2 },
        ["the events of a response"] = { EVENTS, 9, 4 },
        ["the events of a message"] = { MESSAGE_EVENTS, 60, 6 },
        ["events that have a half of it each"] = { HALF, 60, 6 },
        ["a response whose client chose a key of that name"] = { FORGED_AT_FIRST, 40, 1 },
        ["an answer with white space"] = { '{"usage": {\n  "prompt_tokens" : 3 ,\n "completion_tokens": 4\n}}', 3, 4 },
    } do
        it("is found, cut at any byte, in " .. name, function()
            local text, expected = case[1], { case[2], case[3] }
            assert.same(expected, read(text))
            for at = 1, #text - 1 do
                assert.same(expected, read(text:sub(1, at), text:sub(at + 1)), at)
            end
            local bytes = {}
            text:gsub(".", function(byte)
                bytes[#bytes + 1] = byte
            end)
            assert.same(expected, read(unpack(bytes)))
        end)
    end

    for name, text in pairs {
        ["generated text"] = [[{"content":"{\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}}"}]],
        ["generated text that ends in the key"] = [[{"content":"\"usage","x":{"prompt_tokens":9}}]],
        ["generated text whose backslashes are escaped too"] = [[{"content":"\\\"usage\\\":{\"prompt_tokens\":9}"}]],
        ["a key that ends alike"] = '{"my_usage":{"prompt_tokens":9}}',
        ["a number below zero"] = '{"usage":{"prompt_tokens":-9,"completion_tokens":-9}}',
        ["a broken number"] = '{"usage":{"prompt_tokens":9.5,"completion_tokens":9e3}}',
        ["a number in a string"] = '{"usage":{"prompt_tokens":"9","completion_tokens":"9"}}',
        ["a number that is too large"] = '{"usage":{"prompt_tokens":16777217,"completion_tokens":9999999999999999}}',
        ["numbers whose sum is too large"] = '{"usage":{"input_tokens":16777216,"cache_read_input_tokens":1}}',
        ["no prompt"] = '{"usage":{"prompt_tokens":0}}',
        ["cached tokens alone"] = '{"usage":{"prompt_tokens_details":{"cached_tokens":9}}}',
        ["seconds"] = '{"usage":{"type":"duration","seconds":9}}',
        ["an object without an end"] = '{"usage":{"prompt_tokens":9,',
        ["an object that is too long"] = '{"usage":{"x":"' .. ("x"):rep(512) .. '","prompt_tokens":9}}',
        ["too much white space"] = '{"usage":' .. (" "):rep(600) .. '{"prompt_tokens":9}}',
    } do
        it("is not found in " .. name, function()
            assert.same({ "unknown", 0 }, read(text))
            local cut = math.floor(#text / 2)
            assert.same({ "unknown", 0 }, read(text:sub(1, cut), text:sub(cut + 1)))
        end)
    end

    for bytes, expected in pairs { [0] = 51, [1] = 52, [48] = 99, [49] = 100, [999] = 100 } do
        it("has no more tokens of output than the answer has bytes, before it " .. bytes, function()
            assert.same({ 7, expected }, read((" "):rep(bytes), '"usage":{"prompt_tokens":7,"completion_tokens":100}'))
        end)
    end

    it("is found after what is none", function()
        for _, before in ipairs { '"usage":', '"usage":{', '"usage":' .. ("{"):rep(600), '"usage":7,', '"usage":{}' } do
            local text = before .. (" "):rep(1000) .. CHAT
            assert.same({ 4096, 13 }, read(text), before)
            assert.same({ 4096, 13 }, read(text:sub(1, 700), text:sub(701)), before)
        end
    end)

    it("keeps little of an answer, whatever the answer is", function()
        for _, piece in ipairs { '"usage":{', '"usage": ', "{", " ", '"usage":{"usage":', "text" } do
            local it = usage.of(nil)
            for _ = 1, 5000 do
                it:see(piece)
                assert.is_true(#it.rest < 1024, piece)
            end
        end
    end)

    it("cannot be read in an answer that is encoded", function()
        assert.is_nil(usage.of "gzip")
        assert.is_not_nil(usage.of "identity")
    end)
end)
