"""Contestants: nginx without anything that changes its weights."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.contestant import Contestant, Running, Site
from benchmarks.processes import await_answer, find_program, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# By name of a method: its directive.
METHODS = {
    "round_robin": "",
    "least_conn": "least_conn;",
    "random_two_least_conn": "random two least_conn;",
}
# The directives of the role nginx_ingress that change what a request costs or where it goes.
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


class Nginx(Contestant):
    """An nginx whose upstream never changes."""

    def __init__(self, name: str, label: str, method: str, *, zone: bool = True) -> None:
        """Give all nodes the same weight.

        `method`: a key of METHODS. `zone`: the workers share their counts of requests.
        """
        self.name, self.label, self.method, self.zone = name, label, method, zone

    def missing(self) -> str | None:
        """Return a message if nginx is not installed."""
        return None if find_program("nginx") else "nginx is not installed: tools/system-packages bench"

    def upstream(self, site: Site) -> str:
        """Return the upstream file that nginx starts with."""
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
        """Return the values of modules, hooks and status in CONFIGURATION that differ from those of a plain nginx."""
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
