local node_report = require "vllm_nginx_lb.node_report"

describe("node_report", function()
    it("has a row for each node", function()
        local node = { name = "node-a", peer = "127.0.0.2:8000", weight = 50, effective_weight = 5, slot = 0 }
        local out = { name = "node-b", peer = "127.0.0.3:8000", weight = 0, effective_weight = 0, slot = 1 }
        local parts = {
            settings = { stream_bytes = 100, ingresses = 1 },
            in_flight = {
                totals = function()
                    return { [0] = 300, 2, 0, 0 }
                end,
            },
            ejection = {
                seconds_left = function(_, peer)
                    return peer == node.peer and 3 or 0
                end,
                cause = function(_, peer)
                    return peer == node.peer and "errors" or nil
                end,
            },
            counts = {
                times_chosen = function()
                    return 7
                end,
                times_passed_over = function()
                    return 4
                end,
                first_outputs = function()
                    return 6, 1.5, 2.5
                end,
                times_answered = function(_, _, label)
                    return label == "500" and 5 or label == "2xx" and 2 or 0
                end,
                times_ejected = function(_, _, cause)
                    return cause == "errors" and 1 or 0
                end,
            },
            prefill = {
                speed = function(_, peer)
                    return peer == node.peer and 40000 or nil
                end,
            },
        }
        local rows = node_report.rows({ llm_cluster = { nodes = { node, out } } }, parts)
        assert.same({
            pool = "llm_cluster",
            node = "node-a",
            address = "127.0.0.2:8000",
            weight = 50,
            capacity = 5,
            pending_bytes = 300,
            streams = 2,
            score = 100,
            backoff_seconds = 3,
            ejected_for = "errors",
            picks = 7,
            passed_over = 4,
            prefill_speed = 40000,
            first_outputs = 6,
            predicted_seconds = 1.5,
            seen_seconds = 2.5,
            answers = { ["500"] = 5, ["2xx"] = 2 },
            ejections = { errors = 1 },
        }, rows[1])
        assert.is_nil(rows[2].score)
        assert.is_nil(rows[2].prefill_speed)
        assert.is_nil(rows[2].ejected_for)
        assert.same({ "node-b", 0, 0 }, { rows[2].node, rows[2].weight, rows[2].streams })
    end)

    it("names the nodes that are ejected now, and no other", function()
        local ejections = {
            seconds_left = function(_, peer)
                return peer == "127.0.0.3:8000" and 4 or 0
            end,
            cause = function() -- a cause lasts longer than the ejection
                return "errors"
            end,
        }
        local a = { name = "node-a", peer = "127.0.0.2:8000" }
        local b = { name = "node-b", peer = "127.0.0.3:8000" }
        local rows = node_report.ejected({ llm_cluster = { nodes = { a, b } } }, ejections)
        assert.same({ { pool = "llm_cluster", node = "node-b", cause = "errors", seconds = 4 } }, rows)
    end)

    it("is what Prometheus reads", function()
        local text = node_report.prometheus({
            { pool = "llm_cluster", node = "node-a", weight = 100, streams = 2, seen_seconds = 2.5, score = 0.5 },
            {
                pool = "llm_cluster",
                node = "node-b",
                weight = 0,
                streams = 0,
                picks = 7,
                answers = { ["2xx"] = 3, ["404"] = 1 },
                ejections = { silent = 2 },
            },
        }, { { dict = "vllm_nginx_lb", full = 2 } })
        for _, line in ipairs {
            "# TYPE vllm_nginx_lb_work_picks_total counter",
            "# TYPE vllm_nginx_lb_work_dict_full_total counter",
            'vllm_nginx_lb_work_dict_full_total{dict="vllm_nginx_lb"} 2',
            'vllm_nginx_lb_work_picks_total{pool="llm_cluster",node="node-b"} 7',
            'vllm_nginx_lb_work_first_output_seconds_total{pool="llm_cluster",node="node-a"} 2.5',
            'vllm_nginx_lb_work_weight{pool="llm_cluster",node="node-b"} 0',
            'vllm_nginx_lb_work_score{pool="llm_cluster",node="node-a"} 0.5',
            "# TYPE vllm_nginx_lb_work_answers_total counter",
            'vllm_nginx_lb_work_answers_total{pool="llm_cluster",node="node-b",status="2xx"} 3',
            'vllm_nginx_lb_work_answers_total{pool="llm_cluster",node="node-b",status="404"} 1',
            'vllm_nginx_lb_work_ejections_total{pool="llm_cluster",node="node-b",cause="silent"} 2',
        } do
            assert.is_truthy(text:find(line .. "\n", 1, true), line)
        end
        assert.is_nil(text:find('score{pool="llm_cluster",node="node-b"}', 1, true)) -- of one that serves nobody
    end)
end)
