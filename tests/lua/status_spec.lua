local status = require "vllm_nginx_lb.status"

describe("status", function()
    it("is what Prometheus reads", function()
        local text = status.prometheus {
            { pool = "llm_cluster", node = "node-a", weight = 100, streams = 2, picks = 7, score = 0.5 },
            { pool = "llm_cluster", node = "node-b", weight = 0, streams = 0, picks = 0 },
        }
        for _, line in ipairs {
            "# TYPE vllm_nginx_lb_work_picks_total counter",
            'vllm_nginx_lb_work_picks_total{pool="llm_cluster",node="node-a"} 7',
            'vllm_nginx_lb_work_weight{pool="llm_cluster",node="node-b"} 0',
            'vllm_nginx_lb_work_score{pool="llm_cluster",node="node-a"} 0.5',
        } do
            assert.is_truthy(text:find(line .. "\n", 1, true), line)
        end
        assert.is_nil(text:find('score{pool="llm_cluster",node="node-b"}', 1, true)) -- of one that serves nobody
    end)
end)
