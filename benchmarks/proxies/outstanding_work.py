"""Contestants: the balancer `work`, Lua in nginx that chooses nodes, with the weights of the script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.proxies.script_weights import ScriptWeights
from benchmarks.scenario import LUA

if TYPE_CHECKING:
    from benchmarks.contestant import Site

LUA_MODULES = [Path("/usr/lib/nginx/modules") / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]
PHASES = 'require("vllm_nginx_lb.phases")'


class OutstandingWork(ScriptWeights):
    """An nginx in which Lua chooses, with weights that the script publishes without a reload."""

    def __init__(self, name: str, label: str, **settings: Any) -> None:
        """Weigh nodes by the default policy; `settings` are those of the Lua code that differ from their defaults."""
        super().__init__(name, label, "capacity")
        self.settings = settings

    def missing(self) -> str | None:
        """Return a message if nginx or its Lua module is not installed."""
        lua = all(module.exists() for module in LUA_MODULES)
        return super().missing() or (None if lua else "nginx's Lua is not installed: tools/system-packages bench")

    def parts(self) -> dict[str, str]:
        """Return the directives that run Lua; they are the role's own files."""
        return {
            "modules": "".join(f"load_module {module};" for module in LUA_MODULES),
            "hooks": f"include {LUA}/server.conf;",
            "status": f"include {LUA}/status.conf;",
        }

    def upstream(self, site: Site) -> str:
        """Return the upstream whose nodes Lua chooses, and the settings of the Lua."""
        settings = {  # those that differ from their defaults, times scaled
            "file": str(site.directory / "weights.json"),
            "upstream_file": str(site.directory / "none"),
            "readings_file": str(site.directory / "state" / "readings.json"),
            "prefill_bytes_per_second": 32 * 1024 / site.scale,
            "refresh_seconds": 0.5 * site.scale,
            "ramp_seconds": 30 * site.scale,
            "stall_seconds": 60 * site.scale,
            "backoff": {"first": 0.5 * site.scale, "longest": 10 * site.scale},
        } | self.settings
        return (
            f'lua_package_path "{LUA}/?.lua;;";\nlua_shared_dict vllm_nginx_lb 10m;\n'
            "lua_shared_dict vllm_nginx_lb_prefixes 16m;\n"
            f"init_by_lua_block {{ {PHASES}.init([==[{json.dumps(settings)}]==]) }}\n"
            f"init_worker_by_lua_block {{ {PHASES}.init_worker() }}\n"
            "upstream llm_cluster {\n    server 0.0.0.1;\n"
            f'    balancer_by_lua_block {{ {PHASES}.balance("llm_cluster") }}\n'
            "    keepalive 64;\n    keepalive_timeout 2s;\n}\n"
        )

    def script_config(self, site: Site) -> dict[str, Any]:
        """Return the script's configuration for this site."""
        config = super().script_config(site)
        published = {"balancer": "work", "upstream_file": str(site.directory / "weights.json")}
        return config | {"nginx": config["nginx"] | published}
