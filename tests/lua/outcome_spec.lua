local outcome = require "vllm_nginx_lb.outcome"

describe("outcome", function()
    -- What nginx knows of the last try, and its kind and label.
    local JSON, HTML = "application/json; charset=utf-8", "text/html"
    for _, case in ipairs {
        { "200", "good", "2xx" },
        { "101", "good", "1xx" },
        { "304", "good", "3xx" },
        { "301", "fault", "3xx" },
        { "404", "refusal", "404" },
        { "418", "refusal", "4xx" },
        { "500", "fault", "500", "0.010", "90" },
        { "507", "fault", "5xx", "0.010", "90" },
        { "503", "full", "503", "0.010", "90", JSON },
        { "503", "full", "503", "0.010", "90", HTML, "5" },
        { "503", "gateway", "503", "0.010", "90", HTML },
        { "502", "gateway", "502", "0.010", "90", JSON },
        { "502", "unreachable", "unreachable", "-", "0" },
        { "504", "unreachable", "unreachable", "-", "0" },
        { "502", "broken", "broken", "-", "90" },
        { "504", "timed_out", "timed_out", "-", "90" },
        { "-", "left", "left", "-", "90" },
    } do
        local status, kind, label, header_time, sent, content_type, retry_after = unpack(case, 1, 7)
        it(("of %s, %s, is %s"):format(status, tostring(content_type or header_time), kind), function()
            local var = {
                upstream_status = status,
                upstream_header_time = header_time,
                upstream_bytes_sent = sent,
                upstream_http_content_type = content_type,
                upstream_http_retry_after = retry_after,
            }
            local try = outcome.read(var, 0)
            assert.same({ kind, label }, { outcome.kind_of(try), outcome.label_of(try, kind) })
        end)
    end

    it("is read of the try that has failed while the next one is chosen", function()
        local var = { upstream_bytes_sent = "9, 0 : ", upstream_header_time = "-, - : " }
        for values, status in pairs {
            ["502, 504 : "] = 504, -- the next try has no value yet
            ["502 : "] = 502,
            ["502 : -"] = 502, -- an error page has sent the request to nodes again
        } do
            var.upstream_status = values
            assert.equal(status, outcome.read(var, 1).status)
        end
        assert.is_false(outcome.read({
            upstream_status = "502, 502 : ",
            upstream_bytes_sent = "9, 0 : ",
            upstream_header_time = "-, - : ",
        }, 1).was_sent)
    end)

    it("has few labels, and each is used", function()
        assert.equal(23, #outcome.LABELS)
        assert.same({ true, true, true, true, false, false, false }, {
            outcome.IS_BAD["404"],
            outcome.IS_BAD["5xx"],
            outcome.IS_BAD[outcome.NO_OUTPUT],
            outcome.IS_BAD.broken,
            outcome.IS_BAD["2xx"],
            outcome.IS_BAD.left,
            outcome.IS_BAD.light,
        })
    end)
end)
