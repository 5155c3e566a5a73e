local ejection = require "vllm_nginx_lb.ejection"
local error_share = require "vllm_nginx_lb.error_share"
local new_dict = require "fake_dict"
local node_counts = require "vllm_nginx_lb.node_counts"
local outlier = require "vllm_nginx_lb.outlier"
local shared_dict = require "vllm_nginx_lb.shared_dict"

local PEERS = { "a:1", "b:1", "c:1", "d:1" }

describe("a node that answers worse than the others", function()
    local now, dict, parts, outliers, pool

    local function open(settings)
        now, dict = 1000, new_dict()
        local function clock()
            return now
        end
        local shared = shared_dict.open(dict, { name = "test" })
        local counts = node_counts.new(shared)
        local times = { first = 1, longest = 8, memory = 60, probe = 10, most_percent = 50 }
        local all = { row = 5, leavers = 3, leaver_seconds = 5, error_ratio = 0.3, interval_seconds = 10 }
        for name, value in pairs(settings or {}) do
            all[name] = value
        end
        parts = {
            settings = { outlier = all, stall_seconds = 60 },
            dict = shared,
            counts = counts,
            ejection = ejection.new(shared, times, clock, counts, function() end),
            now = clock,
        }
        parts.ejection:use_nodes(PEERS)
        outliers = outlier.new(parts)
        pool = { name = "test", nodes = {} }
        for i, peer in ipairs(PEERS) do
            pool.nodes[i] = { peer = peer, effective_weight = 1 }
        end
    end

    before_each(function()
        open()
    end)

    local function bad(peer, kind, label, sent_at)
        now = now + 0.1
        outliers:bad({ peer = peer, pool = pool, sent_at = sent_at or now }, kind, label)
    end

    --- A bad answer to the request that is a node's trial.
    local function bad_trial(peer, kind, label)
        local is_trial = parts.ejection:chosen(peer)
        assert.is_true(is_trial)
        outliers:bad({ peer = peer, pool = pool, sent_at = now, is_trial = is_trial }, kind, label)
    end

    local function good(peer)
        now = now + 0.1
        outliers:good(peer, true)
        parts.ejection:succeeded(peer)
        parts.counts:note_output(peer, now)
    end

    local function causes()
        local found = {}
        for _, peer in ipairs(PEERS) do
            found[peer] = parts.ejection:cause(peer)
        end
        return found
    end

    for _, case in ipairs {
        { "fault", "500", "errors" },
        { "fault", "3xx", "errors" },
        { "fault", "no_output", "errors" },
        { "fault", "cut_off", "errors" },
        { "refusal", "401", "refusals" },
        { "refusal", "403", "refusals" },
        { "refusal", "404", "refusals" },
        { "refusal", "429", "refusals" },
    } do
        local kind, label, cause = unpack(case)

        it("is ejected after some bad answers in a row: " .. label, function()
            bad("a:1", kind, label)
            good "b:1"
            for _ = 2, 4 do
                bad("a:1", kind, label)
            end
            assert.same({}, causes())
            bad("a:1", kind, label)
            assert.same({ ["a:1"] = cause }, causes())
        end)

        it("stays if it gives good answers in between: " .. label, function()
            for i = 1, 20 do
                bad("a:1", kind, label)
                good "b:1"
                if i % 4 == 0 then
                    good "a:1"
                end
            end
            assert.same({}, causes())
        end)

        it("stays if all answer alike: " .. label, function()
            for _, peer in ipairs(PEERS) do
                good(peer)
            end
            for _ = 1, 20 do
                for _, peer in ipairs(PEERS) do
                    bad(peer, kind, label)
                end
            end
            assert.same({}, causes())
        end)

        it("stays if the others, which also give good answers, give such a one too: " .. label, function()
            for _ = 1, 20 do
                bad("a:1", kind, label)
                for i = 2, 4 do
                    bad(PEERS[i], kind, label)
                    good(PEERS[i])
                end
            end
            assert.same({}, causes())
        end)

        it("is ejected beside another one like it, as far as the pool allows: " .. label, function()
            for _ = 1, 6 do
                for i = 1, 3 do
                    bad(PEERS[i], kind, label)
                end
                good "d:1"
            end
            assert.same({ ["a:1"] = cause, ["b:1"] = cause }, causes())
        end)

        it("stays where bad answers in a row eject nobody: " .. label, function()
            open { row = 0 }
            for _ = 1, 20 do
                bad("a:1", kind, label)
                good "b:1"
            end
            assert.same({}, causes())
        end)
    end

    for kind, cause in pairs { refusal = "refusals", fault = "errors" } do
        it("stays for a bad answer that a client has earned at one node after another: " .. kind, function()
            for i, peer in ipairs { "a:1", "b:1", "c:1", "d:1", "a:1" } do
                for _ = 1, 5 do
                    bad(peer, kind, "label")
                    for _, other in ipairs(PEERS) do
                        if other ~= peer then
                            good(other)
                        end
                    end
                end
                now = now + (i > 3 and 50 or 0)
            end
            assert.same({ 1, 1, 1, 0 }, {
                parts.counts:times_ejected("a:1", cause),
                parts.counts:times_ejected("b:1", cause),
                parts.counts:times_ejected("c:1", cause),
                parts.counts:times_ejected("d:1", cause),
            })
        end)
    end

    it("is ejected again when its trial fails, for longer", function()
        for _ = 1, 5 do
            bad("a:1", "fault", "500")
            good "b:1"
        end
        now = now + 1
        bad_trial("a:1", "fault", "500")
        assert.equal(2, math.floor(parts.ejection:seconds_left "a:1" + 0.5))
    end)

    for cause, refusal in pairs { unreachable = "ends", refusals = "extends", errors = "leaves", silent = "leaves" } do
        it(("has a trial after %s that a refusal %s"):format(cause, refusal), function()
            parts.ejection:failed("a:1", cause, pool)
            now = now + 1
            bad_trial("a:1", "refusal", "404")
            local expected = { ends = { nil, 0 }, extends = { cause, 2 }, leaves = { cause, 0 } }
            assert.same(expected[refusal], { parts.ejection:cause "a:1", parts.ejection:seconds_left "a:1" })
        end)
    end

    it("is ejected after streams that began well and were cut off, but not if one reaches its end", function()
        local function begin_and_cut()
            outliers:good "a:1"
            parts.ejection:succeeded "a:1"
            bad("a:1", "fault", "cut_off")
            good "b:1"
        end
        for i = 1, 12 do
            begin_and_cut()
            if i % 4 == 0 then
                good "a:1"
            end
        end
        assert.same({}, causes())
        for _ = 1, 5 do
            begin_and_cut()
        end
        assert.same({ ["a:1"] = "errors" }, causes())
        now = now + 1
        assert.is_true(parts.ejection:chosen "a:1")
        begin_and_cut()
        assert.equal(2, math.floor(parts.ejection:seconds_left "a:1" + 0.5))
    end)

    it("ends its other rows with a stream that begins", function()
        for _ = 1, 20 do
            bad("a:1", "fault", "500")
            outliers:good "a:1"
            good "b:1"
        end
        assert.same({}, causes())
    end)

    it("has no trial in the ends of requests that were sent before its ejection", function()
        parts.ejection:failed("a:1", "broken", pool)
        local sent_at = now - 1
        for _, kind in ipairs { "left", "fault", "left", "left", "fault", "fault", "fault", "fault" } do
            now = now + 5
            good "b:1"
            bad("a:1", kind, "500", sent_at)
        end
        assert.equal(0, parts.ejection:seconds_left "a:1")
        parts.ejection:succeeded "a:1"
        assert.same({}, causes())
        assert.equal(1, parts.counts:times_ejected("a:1", "broken"))
    end)

    it("stays where it says that it is full, but not for ever", function()
        for _ = 1, 100 do
            bad("a:1", "full", "503")
            good "b:1"
        end
        assert.same({}, causes())
        for _ = 1, 20 do
            now = now + 3
            bad("a:1", "full", "503")
            good "b:1"
        end
        assert.same({ ["a:1"] = "errors" }, causes())
    end)

    it("stays where it says only now and then that it is full", function()
        for _ = 1, 100 do
            now = now + 30
            bad("a:1", "full", "503")
            good "b:1"
        end
        assert.same({}, causes())
    end)

    it("is ejected when clients leave it that have waited, while another one answers", function()
        local sent_at = now
        now = now + 15
        bad("a:1", "left", "left", sent_at)
        bad("a:1", "left", "left", sent_at)
        good "b:1"
        assert.same({}, causes())
        bad("a:1", "left", "left", sent_at)
        assert.same({ ["a:1"] = "silent" }, causes())
    end)

    it("stays when clients leave it that have not waited, or leave the others too", function()
        for _ = 1, 20 do
            bad("a:1", "left", "left")
            good "b:1"
        end
        local sent_at = now
        now = now + 15
        for _ = 1, 20 do
            for _, peer in ipairs(PEERS) do
                bad(peer, "left", "left", sent_at)
            end
        end
        assert.same({}, causes())
    end)

    it("costs few searches where all answer alike", function()
        local searches = 0
        parts.counts.last_output = function()
            searches = searches + 1
            return 0
        end
        for _ = 1, 1000 do
            outliers:bad({ peer = "a:1", pool = pool, sent_at = now }, "fault", "500")
        end
        assert.equal(3, searches)
    end)

    it("leaves nothing behind when it leaves the list", function()
        parts.counts:note_output("b:1", now)
        local keys = #dict:get_keys()
        for _, kind in ipairs { "fault", "refusal", "full" } do
            bad("a:1", kind, "500")
        end
        bad("a:1", "fault", "cut_off")
        bad("a:1", "left", "left", now - 10)
        parts.counts:keep_only { "b:1" }
        assert.equal(keys, #dict:get_keys())
    end)

    describe("in its share of bad answers", function()
        local shares

        --- Answers of each node in one second: how many of each label.
        local function answers(of)
            now = now + 1
            for peer, by_label in pairs(of) do
                for label, times in pairs(by_label) do
                    for _ = 1, times do
                        parts.counts:answered(peer, label)
                        parts.counts:gave(peer, label, now)
                    end
                end
            end
            shares:compare({ test = pool }, PEERS)
        end

        before_each(function()
            shares = error_share.new(parts)
            answers { ["a:1"] = { ["500"] = 1 } } -- from here on, answers are compared
        end)

        local OTHERS = { { ["2xx"] = 30 }, { ["2xx"] = 28, ["404"] = 2 } }
        for name, case in pairs {
            ["is ejected with half of them"] = { { ["2xx"] = 10, ["500"] = 10 }, true },
            ["is ejected with half of them without output"] = { { ["2xx"] = 10, no_output = 10 }, true },
            ["is ejected with half of them cut off"] = { { ["2xx"] = 10, cut_off = 10 }, true },
            ["is ejected with half of them elsewhere"] = { { ["2xx"] = 10, ["3xx"] = 10 }, true },
            ["is ejected with refusals of its own"] = { { ["2xx"] = 10, ["401"] = 10 }, true },
            ["is ejected with many more refusals than the others, who give such ones too"] = {
                { ["2xx"] = 10, ["404"] = 10 },
                true,
            },
            ["stays with some more refusals than the others"] = { { ["2xx"] = 15, ["404"] = 5 }, false },
            ["is ejected with half of them, however often its list of models is read"] = {
                { ["2xx"] = 10, ["500"] = 10, light = 1000 },
                true,
            },
            ["stays with few of them"] = { { ["2xx"] = 30, ["500"] = 5 }, false },
            ["stays where it says that it is full"] = { { ["2xx"] = 10, ["503"] = 30 }, false },
            ["stays with too few answers to say"] = { { ["500"] = 1 }, false },
            ["stays when clients leave it"] = { { ["2xx"] = 10, ["left"] = 30 }, false },
        } do
            it(name, function()
                for _ = 1, 3 do
                    answers { ["a:1"] = case[1], ["b:1"] = OTHERS[1], ["c:1"] = OTHERS[2] }
                end
                assert.equal(case[2] and "error_share" or nil, parts.ejection:cause "a:1")
                assert.is_nil(parts.ejection:cause "b:1" or parts.ejection:cause "c:1")
            end)
        end

        it("stays where all answer alike", function()
            for _ = 1, 30 do
                answers {
                    ["a:1"] = { ["500"] = 30 },
                    ["b:1"] = { ["500"] = 20 },
                    ["c:1"] = { ["500"] = 20, ["2xx"] = 3 },
                    ["d:1"] = { ["500"] = 20, ["404"] = 2 },
                }
            end
            assert.same({}, causes())
        end)

        it("is not ejected again for answers of before its ejection", function()
            answers { ["a:1"] = { ["500"] = 30 }, ["b:1"] = { ["2xx"] = 30 } }
            assert.same({ ["a:1"] = "error_share" }, causes())
            good "a:1"
            for _ = 1, 30 do
                answers { ["a:1"] = { ["2xx"] = 1 }, ["b:1"] = { ["2xx"] = 3 } }
            end
            assert.equal(1, parts.counts:times_ejected("a:1", "error_share"))
            assert.same({}, causes())
        end)

        it("is looked at only when there was a bad answer since the last time", function()
            local readings, labels = 0, parts.counts.labels
            parts.counts.labels = function(...)
                readings = readings + 1
                return labels(...)
            end
            for _ = 1, 30 do
                answers { ["a:1"] = { ["2xx"] = 10, left = 1, light = 1 }, ["b:1"] = { ["2xx"] = 10 } }
            end
            assert.equal(0, readings)
            for _ = 1, 3 do
                answers { ["a:1"] = { ["500"] = 10 }, ["b:1"] = { ["2xx"] = 10 } }
            end
            assert.equal(3, readings)
            assert.same({ ["a:1"] = "error_share" }, causes()) -- good answers of long ago do not count
        end)

        it("costs nothing before the first bad answer, and where it is switched off", function()
            for _, settings in ipairs { {}, { error_ratio = 1 } } do
                open(settings)
                shares = error_share.new(parts)
                answers { ["a:1"] = { [settings.error_ratio and "500" or "2xx"] = 100 }, ["b:1"] = { ["2xx"] = 100 } }
                assert.is_nil(shares.newer)
            end
        end)
    end)
end)
