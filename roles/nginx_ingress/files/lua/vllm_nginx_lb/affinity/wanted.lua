--- The affinity that the settings want, as an object with the functions of affinity/off.lua.

local clock = require "vllm_nginx_lb.clock"
local nginx_hash = require "vllm_nginx_lb.nginx_hash"
local off = require "vllm_nginx_lb.affinity.off"
local prefix = require "vllm_nginx_lb.affinity.prefix"
local session = require "vllm_nginx_lb.affinity.session"

local wanted = {}

--- Make it.
---@param settings table `affinity`; see session.new for more
---@param counts NodeCounts
---@param marks SharedDict of the prefix marks
---@param cache_clock CacheClock
---@return Affinity
function wanted.new(settings, counts, marks, cache_clock)
    local function has_refused(peer, origin)
        return counts:has_refused(peer, origin, clock.now())
    end
    if settings.affinity == "session" then
        return session.new(settings, nginx_hash.place, has_refused)
    elseif settings.affinity == "prefix" then
        return prefix.new { dict = marks, cache_clock = cache_clock, hashes = nginx_hash, has_refused = has_refused }
    end
    return off.new()
end

return wanted
