--- Refuse two kinds of answers. nginx takes an informational status (1xx) for the whole answer. nginx passes on as it
-- is what has no status line.
--
-- A client reads the rest of such an answer as the next answer on its connection. So a node could answer a request that
-- it never got. 103 is refused too, because no client of an inference API uses it. 101 would open a tunnel from the
-- client to the node, and no path here is a WebSocket's. answer_guard.conf does the same for the balancer `upstream`.

-- error_answers.conf answers 502 and closes the client's connection in place of this status, which nobody else uses.
local NO_ANSWER = 598
local HTTP_0_9 = 9 -- ngx.status of an answer without a status line

local answer_guard = {}

--- Whether a node's answer may go to the client.
---@return boolean
function answer_guard.is_answer()
    return ngx.status >= ngx.HTTP_OK
end

--- In header_filter_by_lua: refuse what a node has sent, and close its connection.
function answer_guard.refuse()
    local status = ngx.status
    ngx.log(ngx.ERR, "vllm-nginx-lb: node ", ngx.var.upstream_addr, " sent no answer, but status ", status)
    -- nginx sends no headers after an answer of HTTP/0.9, so the client's connection is closed without an answer.
    return ngx.exit(status == HTTP_0_9 and ngx.ERROR or NO_ANSWER)
end

return answer_guard
