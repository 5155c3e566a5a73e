-- What nginx's Lua module brings, and what busted does.
std = "ngx_lua"
files["tests/lua"] = { std = "luajit+busted" }
