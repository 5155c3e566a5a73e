--- Requests that lack a good key, TLS or a known name: how many nginx has refused, and how many it has served in the
-- grace time, over all workers.

local KEY = "unfit:"
-- What a request may lack. The first three are the states of a key in authentication_maps.conf, with "_key" added.
local FAULTS = { "missing_key", "unknown_key", "expired_key", "no_tls", "unknown_name" }
local ANSWERS = { "refused", "served" }
local NAME = "vllm_nginx_lb_work_unfit_requests_total"
local HELP = "Requests that lack a good key, TLS or a known name, and whether the grace time served them."

---@class UnfitRequests
local UnfitRequests = {}
UnfitRequests.__index = UnfitRequests

local unfit_requests = {}

---@param dict SharedDict
---@return UnfitRequests
function unfit_requests.new(dict)
    return setmetatable({ dict = dict }, UnfitRequests)
end

--- Count a request.
---@param fault string of FAULTS
---@param is_refused boolean
---@return integer|nil number of such requests since nginx started; nil if there is no room for it
function UnfitRequests:count(fault, is_refused)
    return (self.dict:incr(KEY .. fault .. ":" .. ANSWERS[is_refused and 1 or 2], 1))
end

--- Count what a request lacks. A variable is nil if no part of the configuration checks it, and empty if this request
-- was not checked.
---@param var table with nginx's variables
function UnfitRequests:see(var)
    local key = var.vllm_nginx_lb_checked_key or ""
    if key ~= "" and key ~= "good" then
        self:count(key .. "_key", var.vllm_nginx_lb_refuses_key ~= "")
    end
    if var.vllm_nginx_lb_checked_scheme == "http" then
        self:count("no_tls", var.vllm_nginx_lb_needs_tls ~= "")
    end
end

--- The counts in Prometheus' text format. Those that are 0 are left out.
---@return string
function UnfitRequests:prometheus()
    local lines = { "# HELP " .. NAME .. " " .. HELP, "# TYPE " .. NAME .. " counter" }
    for _, fault in ipairs(FAULTS) do
        for _, answer in ipairs(ANSWERS) do
            local number = self.dict:get(KEY .. fault .. ":" .. answer)
            if number then
                lines[#lines + 1] = ('%s{fault="%s",answer="%s"} %d'):format(NAME, fault, answer, number)
            end
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

return unfit_requests
