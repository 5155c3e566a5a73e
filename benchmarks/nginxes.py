"""The contestants that are a real nginx: without weights, with the article's, and with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contestant import (
    POLITELY,
    Contestant,
    ContestantError,
    Running,
    Site,
    await_answer,
    find_program,
    script_config,
    started,
)
from benchmarks.scenario import INTERVAL_SECONDS, LUA, MAX_REQUEST_BYTES, NO_RATION, STREAM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).resolve().parents[1] / "files" / "vllm_nginx_lb.py"
METHODS = {
    "round_robin": "",
    "least_conn": "least_conn;",
    "random_two_least_conn": "random two least_conn;",
}
# The directives of the role nginx_ingress that matter here.
CONFIGURATION = """\
{modules}
daemon off;
worker_processes 2;
worker_rlimit_nofile 16384;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    map_hash_bucket_size 256;
    include upstream.conf;
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 64m;
        client_body_buffer_size 1m;
        gzip off;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host vllm;
        proxy_set_header X-Request-Id $request_id;
        proxy_buffering off;
        proxy_connect_timeout 5s;
        proxy_read_timeout 600s;
        proxy_next_upstream error http_503 non_idempotent;
        proxy_next_upstream_tries 3;
        proxy_next_upstream_timeout 30s;
        {hooks}
        location /v1/ {{ proxy_pass http://llm_cluster; }}
        location = /health {{ return 200; }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        {status}
    }}
}}
"""


STATUS = 'location = /generation { default_type text/plain; return 200 "$vllm_nginx_lb_generation $pid\\n"; }'
LUA_MODULES = [Path("/usr/lib/nginx/modules") / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]
BALANCER = 'require("vllm_nginx_lb.balancer")'


class Nginx(Contestant):
    """An nginx whose upstream never changes."""

    def __init__(self, name: str, label: str, method: str, *, zone: bool = True) -> None:
        """Balance by a method of METHODS, all nodes alike."""
        self.name, self.label, self.method, self.zone = name, label, method, zone

    def missing(self) -> str | None:
        """Say so if nginx is not installed."""
        return None if find_program("nginx") else "nginx is not installed: tools/system-packages bench"

    def upstream(self, site: Site) -> str:
        """Return the upstream file to start with."""
        timeout = max(1, round(60 * site.scale))
        servers = "\n".join(
            f"    server {node.host}:{node.port} max_fails=10 fail_timeout={timeout}s;" for node in site.backends
        )
        zone = "zone llm_cluster 1m;" if self.zone else ""
        return (
            f'map "" $vllm_nginx_lb_generation {{ default "seed"; }}\n'
            f"upstream llm_cluster {{\n{zone}{METHODS[self.method]}\n{servers}\n"
            "    keepalive 64;\n    keepalive_timeout 2s;\n}\n"
        )

    def parts(self) -> dict[str, str]:
        """Return what its configuration has beside the common one."""
        return {}

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run nginx in the foreground."""
        site.directory.chmod(0o755)  # nginx's workers give up root
        parts = {"modules": "", "hooks": "", "status": STATUS} | self.parts()
        text = CONFIGURATION.format(port=site.port, status_port=site.status_port, **parts)
        (site.directory / "nginx.conf").write_text(text)
        (site.directory / "upstream.conf").write_text(self.upstream(site))
        log = site.directory / "nginx.log"
        with started(command(site.directory), log, dict(os.environ)) as process:
            await_answer(f"http://127.0.0.1:{site.port}/health", process, log)
            yield Running([process])


def command(directory: Path) -> list[str]:
    """Return the command line of an nginx that lives in a directory."""
    return [find_program("nginx") or "nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]


class Balanced(Nginx):
    """An nginx whose weights the script decides and publishes, on its real tick."""

    def __init__(
        self, name: str, label: str, policy: str, *, known: bool = False, ration: dict[str, float] | None = None
    ) -> None:
        """Decide by a policy; `known`: the operator has set the capacities; `ration` overrides settings of nginx.*."""
        super().__init__(name, label, "least_conn")
        self.policy, self.known, self.ration = policy, known, ration or {}

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run nginx, and a tick of the script every ten seconds of the model."""
        config = site.directory / "config.yml"
        config.write_text(json.dumps(self.script_config(site)))
        with super().serve(site) as running:
            ticker = Ticker(config, site, running)
            ticker.tick()  # the role runs the first one, too
            running.reloads = 0
            thread = threading.Thread(target=ticker.run)
            thread.start()
            try:
                yield running
            finally:
                ticker.over.set()
                thread.join()
            if ticker.faults:
                print(f"{self.name}: {len(ticker.faults)} ticks failed, the last one: {ticker.faults[-1]}")

    def script_config(self, site: Site) -> dict[str, Any]:
        """Return the script's configuration."""
        nginx = command(site.directory)
        ration = {"min_reload_interval_seconds": 30.0, **self.ration}
        ration["min_reload_interval_seconds"] *= site.scale
        return script_config(site, self.policy, known=self.known) | {
            "nginx": {
                "upstream_file": str(site.directory / "upstream.conf"),
                "test_command": [*nginx, "-t", "-q"],
                "reload_command": [*nginx, "-s", "reload"],
                "pid_file": str(site.directory / "nginx.pid"),
                "confirm_url": f"http://127.0.0.1:{site.status_port}/generation",
                **ration,
            }
        }


class OutstandingWork(Balanced):
    """An nginx in which our Lua chooses, with weights that the script publishes without a reload."""

    def __init__(self, name: str, label: str, affinity: str = "off") -> None:
        """Weigh nodes by the default policy; `affinity` as balancer.lua has it."""
        super().__init__(name, label, "capacity")
        self.affinity = affinity

    def missing(self) -> str | None:
        """Say so if nginx or its Lua module is not installed."""
        lua = all(module.exists() for module in LUA_MODULES)
        return super().missing() or (None if lua else "nginx's Lua is not installed: tools/system-packages bench")

    def parts(self) -> dict[str, str]:
        """Return where Lua hooks in: the role's own files."""
        return {
            "modules": "".join(f"load_module {module};" for module in LUA_MODULES),
            "hooks": f"include {LUA}/server.conf;",
            "status": f"include {LUA}/status.conf;",
        }

    def upstream(self, site: Site) -> str:
        """Return the upstream whose nodes Lua names, with the role's settings."""
        settings = {
            "file": str(site.directory / "weights.json"),
            "upstream_file": str(site.directory / "none"),
            "refresh_seconds": 0.5 * site.scale,
            "dict": "vllm_nginx_lb",
            "stream_bytes": STREAM_BYTES,
            "ingresses": 1,
            "max_request_bytes": MAX_REQUEST_BYTES,
            "tries": 3,
            "ramp_seconds": 30 * site.scale,
            "stall_seconds": 60 * site.scale,
            "affinity": self.affinity,
            "session_header": "X-Session-Id",
            "affinity_factor": 2,
            "affinity_slack_bytes": 8192,
            "prefix_dict": "vllm_nginx_lb_prefixes",
            "prefix_bytes": 16384,
            "prefix_seconds": 600,
            "backoff": {"first": 0.5 * site.scale, "longest": 10 * site.scale, "memory": 60, "probe": 10},
        }
        return (
            f'lua_package_path "{LUA}/?.lua;;";\nlua_shared_dict vllm_nginx_lb 10m;\n'
            "lua_shared_dict vllm_nginx_lb_prefixes 16m;\n"
            f"init_by_lua_block {{ {BALANCER}.configure([==[{json.dumps(settings)}]==]) }}\n"
            f"init_worker_by_lua_block {{ {BALANCER}.start() }}\n"
            "upstream llm_cluster {\n    server 0.0.0.1;\n"
            f'    balancer_by_lua_block {{ {BALANCER}.balance("llm_cluster") }}\n'
            "    keepalive 64;\n    keepalive_timeout 2s;\n}\n"
        )

    def script_config(self, site: Site) -> dict[str, Any]:
        """Return the script's configuration."""
        config = super().script_config(site)
        published = {"balancer": "work", "upstream_file": str(site.directory / "weights.json")}
        return config | {"nginx": config["nginx"] | published}


class Ticker:
    """Runs the script as its timer would, and counts what it says."""

    def __init__(self, config: Path, site: Site, running: Running) -> None:
        """Tick for this site."""
        self.config, self.site, self.running = config, site, running
        self.over = threading.Event()
        self.faults: list[str] = []

    def run(self) -> None:
        """Tick every ten seconds of the model until it is over."""
        due = time.monotonic()
        while True:
            due += INTERVAL_SECONDS * self.site.scale
            if self.over.wait(max(0.0, due - time.monotonic())):
                return
            self.tick()

    def tick(self) -> None:
        """Run the script once.

        Raises:
            ContestantError: it could not be started.
        """
        with (self.site.directory / "ticks.log").open("ab+") as log:
            before = log.tell()
            process = subprocess.Popen(
                [*POLITELY, sys.executable, str(SCRIPT), "--config", str(self.config), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.balancer_seconds += usage.ru_utime + usage.ru_stime
            if process.returncode:
                log.seek(before)
                self.faults.append(log.read().decode(errors="replace").strip())
        with suppress(OSError, ValueError):
            found = json.loads((self.site.directory / "state" / "status.json").read_text())
            self.running.reloads += found["outcome"] == "reloaded"
            self.running.peak_draining = max(self.running.peak_draining, found["draining_generations"])
            return
        raise ContestantError(f"the script's first tick left no status: {self.faults[-1:]}")


NGINXES: tuple[Nginx, ...] = (
    Nginx("nginx-round-robin", "nginx, round robin", "round_robin"),
    Nginx("nginx-least-conn-no-zone", "nginx, least_conn, each worker counts alone", "least_conn", zone=False),
    Nginx("nginx-least-conn", "nginx, least_conn with zone", "least_conn"),
    Nginx("nginx-random-two", "nginx, random two least_conn", "random_two_least_conn"),
    Balanced(
        "article", "the article's script: the ladder, every change reloaded every 10 s", "stepped", ration=NO_RATION
    ),
    Balanced("ours-stepped", "ours, balancer upstream, policy stepped: the ladder, reloads rationed", "stepped"),
    Balanced("ours-capacity", "ours, balancer upstream, policy capacity", "capacity"),
    Balanced("ours-static", "ours, balancer upstream, policy static: known capacities", "static", known=True),
    OutstandingWork("ours-work", "ours, balancer work (the default): outstanding work, no reloads"),
    OutstandingWork(
        "ours-work-prefix", "ours, balancer work, and it knows which node has which prompts cached", "prefix"
    ),
)
