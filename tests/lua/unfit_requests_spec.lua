local new_dict = require "fake_dict"
local shared_dict = require "vllm_nginx_lb.shared_dict"
local unfit_requests = require "vllm_nginx_lb.unfit_requests"

describe("unfit_requests", function()
    local unfit

    before_each(function()
        unfit = unfit_requests.new(shared_dict.open(new_dict(), { name = "test" }))
    end)

    --- The lines of the counts.
    local function counted()
        local lines = {}
        for labels, number in unfit:prometheus():gmatch "\nvllm_nginx_lb_work_unfit_requests_total{(.-)} (%d+)" do
            lines[#lines + 1] = labels .. " " .. number
        end
        return lines
    end

    local cases = {
        { "without any check", {}, {} },
        { "where nobody looked", { vllm_nginx_lb_checked_key = "", vllm_nginx_lb_checked_scheme = "" }, {} },
        { "with a good key", { vllm_nginx_lb_checked_key = "good", vllm_nginx_lb_refuses_key = "" }, {} },
        {
            "without a key",
            { vllm_nginx_lb_checked_key = "missing", vllm_nginx_lb_refuses_key = "1" },
            { 'fault="missing_key",answer="refused" 1' },
        },
        {
            "with an expired key in the grace time",
            { vllm_nginx_lb_checked_key = "expired", vllm_nginx_lb_refuses_key = "" },
            { 'fault="expired_key",answer="served" 1' },
        },
        {
            "without TLS in the grace time",
            { vllm_nginx_lb_checked_scheme = "http", vllm_nginx_lb_needs_tls = "" },
            { 'fault="no_tls",answer="served" 1' },
        },
        {
            "without TLS after the grace time",
            { vllm_nginx_lb_checked_scheme = "http", vllm_nginx_lb_needs_tls = "1" },
            { 'fault="no_tls",answer="refused" 1' },
        },
        { "with TLS", { vllm_nginx_lb_checked_scheme = "https", vllm_nginx_lb_needs_tls = "" }, {} },
    }
    for _, case in ipairs(cases) do
        local what, var, wanted = unpack(case)
        it("sees a request " .. what, function()
            unfit:see(var)
            assert.same(wanted, counted())
        end)
    end

    it("counts and writes its type", function()
        assert.equal(1, unfit:count("unknown_name", true))
        assert.equal(2, unfit:count("unknown_name", true))
        assert.same({ 'fault="unknown_name",answer="refused" 2' }, counted())
        assert.truthy(unfit:prometheus():find("# TYPE vllm_nginx_lb_work_unfit_requests_total counter\n", 1, true))
    end)
end)
