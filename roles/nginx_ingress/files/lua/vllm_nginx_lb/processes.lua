--- Processes of this host.

local ffi = require "ffi"

ffi.cdef "int kill(int pid, int signal);"

local NO_SUCH_PROCESS = 3 -- ESRCH

local processes = {}

--- Whether a process runs.
---@param pid integer
---@return boolean
function processes.is_alive(pid)
    return ffi.C.kill(pid, 0) == 0 or ffi.errno() ~= NO_SUCH_PROCESS
end

return processes
