local in_flight = require "vllm_nginx_lb.in_flight"
local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local A, B, C = "127.0.0.2:8000", "127.0.0.3:8000", "[::1]:8000"

--- A name of 16 characters for a text, as the digest is in nginx.
local function name(text)
    local sum = 0
    for i = 1, #text do
        sum = (sum * 31 + text:byte(i)) % 2 ^ 40
    end
    return ("%016d"):format(sum)
end

describe("in_flight", function()
    local dict, dead

    local function open(pid, addresses)
        local work = in_flight.open(dict, pid, function(other)
            return not dead[other]
        end, name)
        work:use_nodes(addresses)
        return work
    end

    --- Pending bytes and streams of each address, as a worker sees them.
    local function seen(work)
        local found, totals = {}, work:totals()
        for address, slot in pairs(work.slots) do
            found[address] = { totals[2 * slot], totals[2 * slot + 1] }
        end
        return found
    end

    before_each(function()
        dict, dead = shared_dict.open(new_dict(), { name = "test" }), {}
    end)

    it("sums what all workers have under way", function()
        local one, two = open(1, { A, B }), open(2, { A, B })
        one:add(A, 1000, 1)
        two:add(A, 500, 1)
        two:add(B, 7, 1)
        assert.same({ [A] = { 1500, 2 }, [B] = { 7, 1 } }, seen(one))
        assert.same(seen(one), seen(two))
        one:add(A, -1000, 0)
        two:add(B, -7, -1)
        assert.same({ [A] = { 500, 2 }, [B] = { 0, 0 } }, seen(one))
    end)

    it("is exactly zero when all has ended", function()
        local workers = { open(1, { A, B }), open(2, { A, B }) }
        local under_way = {}
        math.randomseed(1)
        for _ = 1, 10000 do
            local worker, bytes = math.random(2), math.random(10 ^ 8)
            local address = math.random(2) == 1 and A or B
            workers[worker]:add(address, bytes, 1)
            under_way[#under_way + 1] = { worker, address, bytes }
            if math.random(2) == 1 then
                local ended = table.remove(under_way, math.random(#under_way))
                workers[ended[1]]:add(ended[2], -ended[3], -1)
            end
        end
        for _, each in ipairs(under_way) do
            workers[each[1]]:add(each[2], -each[3], -1)
        end
        assert.same({ [A] = { 0, 0 }, [B] = { 0, 0 } }, seen(workers[1]))
    end)

    it("keeps what is under way when nodes come and go", function()
        local work = open(1, { A, B })
        work:add(A, 10, 1)
        work:add(B, 20, 1)
        work:use_nodes { C, B }
        assert.same({ [B] = { 20, 1 }, [C] = { 0, 0 } }, seen(work))
        work:add(A, -10, -1) -- ends at a node that has left
        work:add(B, -20, -1)
        assert.same({ [B] = { 0, 0 }, [C] = { 0, 0 } }, seen(work))
    end)

    it("counts right when a node leaves and comes back while it works", function()
        local work = open(1, { A, B })
        work:add(A, 10, 1)
        work:add(A, 20, 1)
        work:use_nodes { B }
        work:add(A, -10, -1)
        work:use_nodes { A, B }
        assert.same({ [A] = { 20, 1 }, [B] = { 0, 0 } }, seen(work))
        work:use_nodes { B }
        work:add(A, -20, -1)
        work:use_nodes { A, B }
        assert.same({ [A] = { 0, 0 }, [B] = { 0, 0 } }, seen(work))
    end)

    it("adds up by address what a worker counts that knows an older list", function()
        local old, new = open(1, { A, B }), open(2, { C, B, A })
        old:add(A, 10, 1)
        new:add(C, 5, 1)
        assert.same({ [A] = { 10, 1 }, [B] = { 0, 0 }, [C] = { 5, 1 } }, seen(new))
        assert.same({ [A] = { 10, 1 }, [B] = { 0, 0 } }, seen(old))
        old:add(A, -10, -1)
        assert.same({ [A] = { 0, 0 }, [B] = { 0, 0 }, [C] = { 5, 1 } }, seen(new))
    end)

    it("forgets what a worker had that died", function()
        local crashed, lives = open(1, { A }), open(2, { A })
        crashed:add(A, 10, 1)
        assert.same({ [A] = { 10, 1 } }, seen(lives))
        dead[1] = true
        lives:find_rows()
        assert.same({ [A] = { 0, 0 } }, seen(lives))
    end)

    it("begins at zero with the process id of one that died", function()
        open(1, { A }):add(A, 10, 1)
        assert.same({ [A] = { 0, 0 } }, seen(open(1, { A })))
    end)

    it("leaves nothing behind of lists that nobody uses", function()
        local work = open(1, { A })
        for i = 1, 100 do
            work:use_nodes { A, "127.0.1." .. i .. ":8000" }
            work:find_rows()
        end
        assert.equal(4, #dict:get_keys()) -- its row, its layout, the count of changes, that of writes that did not fit
    end)

    it("knows no nodes at first", function()
        local work = open(1, {})
        work:add(A, 10, 1)
        assert.same({}, seen(work))
    end)
end)
