--- The nodes' former key, while they change to another one. A node that answers 401 to the one key is asked once more
-- with the former one. The first answer ends no try, and nobody is blamed for it. former_api_key.conf has the key.
-- answer_guard.conf does the same for the balancer `upstream`.

local UNAUTHORIZED = 401
-- former_api_key.conf asks the same node once more in place of this status, which nobody else uses.
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
