local prompt_marks = require "vllm_nginx_lb.prompt_marks"

local KIB = 1024

--- A number of 16 digits that depends on each byte of a text.
local function hash(text)
    local number = 7
    for at = 1, #text do
        number = (number * 31 + text:byte(at)) % 1e12
    end
    return ("%016.0f"):format(number)
end

--- The marks of a body that comes in windows of so many bytes.
local function marks_of(body, window_bytes)
    local seen = prompt_marks.new(hash)
    for at = 1, #body, window_bytes or #body do
        seen:see(body:sub(at, at + (window_bytes or #body) - 1))
    end
    return seen:finish()
end

describe("prompt marks", function()
    it("have distances that grow with what is before them", function()
        for _, case in ipairs { { 0, 1 }, { 16, 1 }, { 31, 1 }, { 32, 2 }, { 63, 2 }, { 64, 4 }, { 1000, 32 } } do
            assert.equal(case[2] * KIB, prompt_marks.distance(case[1] * KIB), case[1])
        end
    end)

    for mib, most in pairs { [1] = 112, [64] = 208 } do
        it(("of %d MiB are at most %d"):format(mib, most), function()
            local at, count = KIB, 0
            while at <= mib * KIB * KIB do
                at, count = at + prompt_marks.distance(at), count + 1
            end
            assert.is_true(count <= most and count > 0.9 * most, count)
        end)
    end

    it("end where whole distances do", function()
        local marks, ends, bytes = marks_of(("x"):rep(3 * KIB + 5))
        assert.same({ 3, { KIB, 2 * KIB, 3 * KIB }, 3 * KIB + 5 }, { #marks, ends, bytes })
        marks, ends, bytes = marks_of(("x"):rep(KIB - 1))
        assert.same({ {}, {}, KIB - 1 }, { marks, ends, bytes })
        marks, ends, bytes = marks_of("", 1)
        assert.same({ {}, {}, 0 }, { marks, ends, bytes })
    end)

    it("are equal as far as bodies are, and no further", function()
        local body = ("abcdefg"):rep(20 * KIB)
        local marks = marks_of(body)
        local other = marks_of(body:sub(1, 50 * KIB) .. "X" .. body:sub(50 * KIB + 2) .. "and more")
        local _, ends = marks_of(body)
        for i, mark in ipairs(marks) do
            assert.equal(ends[i] <= 50 * KIB, mark == other[i], ends[i])
        end
    end)

    for _, window in ipairs { 1, 100, KIB, 5000 } do
        it("are the same for windows of " .. window, function()
            local body = ("abcdefg"):rep(KIB)
            assert.same({ marks_of(body) }, { marks_of(body, window) })
        end)
    end

    describe("of an image", function()
        local function with_image(payload)
            return ("a"):rep(500) .. '"data:image/png;base64,' .. payload .. '"' .. ("b"):rep(2 * KIB)
        end

        for _, window in ipairs { 1, 7, 512, 100000 } do
            it("leave its payload out of the bytes, in windows of " .. window, function()
                local _, ends, bytes = marks_of(with_image(("A"):rep(9000)), window)
                assert.same({ { KIB, 2 * KIB }, #with_image "" }, { ends, bytes })
            end)
        end

        it("differ where its payload does", function()
            local one, other = marks_of(with_image(("A"):rep(9000))), marks_of(with_image(("B"):rep(9000)))
            assert.equal(2, #one)
            assert.are_not.equal(one[1], other[1])
            assert.are_not.equal(one[2], other[2])
        end)
    end)
end)
