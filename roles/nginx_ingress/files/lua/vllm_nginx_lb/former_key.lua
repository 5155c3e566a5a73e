--- The nodes' former key, while they change to a new one. nginx asks a node that answers 401 to the new key once more
-- with the former key. The first answer is neither an error of the node nor a try. former_api_key.conf has the former
-- key. answer_guard.conf does the same for the balancer `upstream`.

local UNAUTHORIZED = 401
-- At this status, which nothing else uses, former_api_key.conf asks the same node once more.
local ASK_AGAIN = 597

local former_key = {}

--- Whether an answer calls for the former key. If so, the variable has the node for the second request.
---@param status integer of the answer
---@param var table with nginx's variables; `vllm_nginx_lb_same_node` is nil without a former key, and empty before the
--- second request
---@return boolean
function former_key.is_wanted(status, var)
    if status ~= UNAUTHORIZED or var.vllm_nginx_lb_same_node ~= "" then
        return false
    end
    local node = (var.upstream_addr or ""):match "([^%s,]+)$"
    var.vllm_nginx_lb_same_node = node or "" -- nginx's own 401 comes from no node
    return node ~= nil
end

--- In header_filter_by_lua: drop the answer, and ask again.
function former_key.ask_again()
    for name in pairs(ngx.resp.get_headers()) do
        ngx.header[name] = nil
    end
    return ngx.exit(ASK_AGAIN)
end

return former_key
