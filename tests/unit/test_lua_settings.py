"""Each setting that the role gives to Lua exists there, and the defaults of both agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa
import yaml
from jinja2 import StrictUndefined
from jinja2.nativetypes import NativeEnvironment

ROLE = Path(__file__).resolve().parents[2] / "roles" / "nginx_ingress"


def of_role(**settings: Any) -> dict[str, Any]:
    """Return what the role's template gives to Lua, as JSON, with these variables and the defaults of the others."""
    defaults, own = (yaml.safe_load((ROLE / name / "main.yml").read_text()) for name in ("defaults", "vars"))
    expression = NativeEnvironment(undefined=StrictUndefined).from_string(own["__nginx_ingress_lua_settings"])
    given = expression.render(own | defaults | settings)
    assert isinstance(given, dict)
    return given


def of_lua(given: dict[str, Any]) -> dict[str, Any]:
    """Return all settings as Lua has them, from those that it is given.

    Raises:
        AssertionError: Lua refuses one.
    """
    lua = lupa.LuaRuntime()
    lua.execute(f"package.path = '{ROLE}/files/lua/?.lua'")
    read: Any = lua.eval(
        """function(given)
            local filled, problems = require("vllm_nginx_lb.settings").of(given)
            return filled or {}, problems or ""
        end"""
    )
    filled, problems = read(lua.table_from(given, recursive=True))
    assert not problems, problems
    return {name: dict(value) if lupa.lua_type(value) == "table" else value for name, value in filled.items()}


def test_defaults_of_role_and_lua_agree() -> None:
    assert of_lua(of_role()) == of_lua({})


def test_each_variable_of_the_balancer_work_reaches_lua() -> None:
    names = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    of_nginx = {"keepalive", "keepalive_timeout_seconds", "memory_mib", "prefix_memory_mib"}
    expression = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__nginx_ingress_lua_settings"]
    for name in names:
        if name.startswith("nginx_ingress_work_"):
            assert (name in expression) == (name.removeprefix("nginx_ingress_work_") not in of_nginx), name
