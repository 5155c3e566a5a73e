--- Files.

local ffi = require "ffi"

ffi.cdef [[
    int open(const char *path, int flags, ...);
    long read(int file, void *bytes, unsigned long count);
    int close(int file);
]]

local WITHOUT_WAITING = 0x800 -- O_RDONLY and O_NONBLOCK of Linux
local NO_SUCH_FILE = 2 -- ENOENT
local PIECE = 65536 -- bytes

local files = {}

--- A file's text.
---@param path string
---@return string|nil text nil if it cannot be read
---@return string|nil problem why it cannot be read
function files.read(path)
    local file, problem = io.open(path, "rb")
    if not file then
        return nil, problem
    end
    local text = file:read "*a"
    file:close()
    return text
end

--- The text of a file in a directory where a user without privileges writes. A pipe there keeps nobody waiting, and
-- what is too large is not read.
---@param path string
---@param most integer bytes
---@return string|nil text nil if it cannot be read
---@return string|nil problem why it cannot be read
---@return boolean|nil is_absent true: there is no file
function files.read_others(path, most)
    local file = ffi.C.open(path, WITHOUT_WAITING)
    if file < 0 then
        local code = ffi.errno()
        return nil, "cannot be opened (error " .. code .. ")", code == NO_SUCH_FILE
    end
    local piece, pieces, total = ffi.new("char[?]", PIECE), {}, 0
    local got, problem
    repeat
        got = tonumber(ffi.C.read(file, piece, PIECE))
        if got < 0 then
            problem = "cannot be read (error " .. ffi.errno() .. ")"
        elseif got > 0 then
            pieces[#pieces + 1], total = ffi.string(piece, got), total + got
        end
    until got <= 0 or total > most
    ffi.C.close(file)
    if total > most then
        problem = ("larger than %d bytes"):format(most)
    end
    return not problem and table.concat(pieces) or nil, problem
end

return files
