local former_key = require "vllm_nginx_lb.former_key"

describe("former_key", function()
    local A, B = "127.0.0.1:8000", "[2001:db8::2]:8000"
    -- What the answer is: its status, the node of the second request before it, all nodes so far; the node to ask.
    local cases = {
        { "a refusal", 401, "", A, A },
        { "a refusal of the second node", 401, "", A .. ", " .. B, B },
        { "a refusal of both keys", 401, A, A .. " : " .. A, nil },
        { "a good answer", 200, "", A, nil },
        { "another refusal", 403, "", A, nil },
        { "a 401 of nginx itself", 401, "", nil, nil },
        { "a refusal where there is no former key", 401, nil, A, nil },
    }
    for _, case in ipairs(cases) do
        local what, status, same_node, upstream_addr, wanted = unpack(case, 1, 5)
        it("sees " .. what, function()
            local var = { vllm_nginx_lb_same_node = same_node, upstream_addr = upstream_addr }
            assert.equal(wanted ~= nil, former_key.is_wanted(status, var))
            assert.equal(wanted or same_node, var.vllm_nginx_lb_same_node)
        end)
    end
end)
