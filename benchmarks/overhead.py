"""Measure what a proxy adds to a request: latency at 1 and 64 connections, and processor time.

The nodes are one nginx that answers at once with a fixed completion. The load is wrk, which is never the bottleneck.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contestant import Backend, Contestant, ContestantError, Site
from benchmarks.processes import await_answer, find_program, started
from benchmarks.proxies.nginx import command
from benchmarks.real import free_ports, processor_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ANSWER = (
    '{"id":"cmpl-1","object":"text_completion","created":1,"model":"sim","choices":[{"index":0,"text":"word ",'
    '"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
MODELS = '{"object":"list","data":[{"id":"sim","object":"model","created":1,"owned_by":"vllm","max_model_len":4096}]}'
METRICS = "".join(
    f'vllm:{name}{{engine="0",model_name="sim"}} {value}\\n'
    for name, value in (
        ("kv_cache_usage_perc", 0),
        ("num_requests_waiting", 0),
        ("num_requests_running", 0),
        ("num_preemptions_total", 0),
    )
)
NODES = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    server {{
        {listen}
        default_type application/json;
        location = /v1/completions {{ return 200 '{answer}'; }}
        location = /v1/models {{ return 200 '{models}'; }}
        location = /metrics {{ default_type text/plain; return 200 '{metrics}'; }}
        location = /health {{ return 200; }}
    }}
}}
"""
POST = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer none"
wrk.body = '{"model": "sim", "prompt": "hello", "max_tokens": 1}'
"""
HOSTS = tuple(f"127.0.0.{i}" for i in range(2, 6))
CONNECTIONS = (1, 64)
SECONDS = 5
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@contextlib.contextmanager
def instant_nodes(
    directory: Path, port: int, hosts: Sequence[str] = HOSTS, more: str = ""
) -> Iterator[tuple[Backend, ...]]:
    """Run nodes that answer at once; `more` are further directives of their server."""
    directory.mkdir()
    directory.chmod(0o755)
    listen = " ".join(f"listen {host}:{port};" for host in hosts) + more
    conf = NODES.format(listen=listen, answer=ANSWER, models=MODELS, metrics=METRICS)
    (directory / "nginx.conf").write_text(conf)
    log = directory / "nginx.log"
    with started(command(directory), log, dict(os.environ)) as process:
        await_answer(f"http://{hosts[0]}:{port}/health", process, log)
        yield tuple(Backend(f"node-{i}", host, port) for i, host in enumerate(hosts))


def ask(url: str, connections: int, seconds: float, script: Path) -> tuple[float, float, int]:
    """Load a URL with wrk; return the median and p99 latency in ms, and how many requests were answered.

    Raises:
        ContestantError: wrk is missing, its output cannot be read, or some answers had another status than 2xx.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise ContestantError("wrk is not installed: tools/system-packages bench")
    words = [wrk, "--latency", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), url]
    output = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + 60).stdout
    found = {name: re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", output) for name in ("50", "99")}
    count = re.search(r"(\d+) requests in", output)
    if count is None or not all(found.values()) or "Non-2xx" in output:
        raise ContestantError(f"wrk at {url}: {' '.join(output.split())[-300:]}")
    p50, p99 = (float(match[1]) * UNITS[match[2]] for match in found.values() if match)
    return p50, p99, int(count[1])


def measure(contestant: Contestant | None) -> dict[str, float]:
    """Return latency and processor time per request through a contestant, or with None of a node without a proxy.

    Returns:
        By the name of a column, as "p50 at 64": milliseconds at that many connections.

    Raises:
        ContestantError: it could not be started or loaded.
    """
    if find_program("nginx") is None:
        raise ContestantError("nginx is not installed: tools/system-packages bench")
    directory = Path(tempfile.mkdtemp(prefix="vllm-nginx-lb-bench-"))
    directory.chmod(0o755)  # nginx's workers give up root, and read what is in it
    try:
        script = directory / "post.lua"
        script.write_text(POST)
        node_port, port, status_port = free_ports(3)
        with contextlib.ExitStack() as stack:
            backends = stack.enter_context(instant_nodes(directory / "nodes", node_port))
            url, running = f"http://127.0.0.2:{node_port}", None
            if contestant:
                place = directory / "proxy"
                place.mkdir()
                site = Site(directory=place, backends=backends, port=port, status_port=status_port, scale=1.0)
                running = stack.enter_context(contestant.serve(site))
                url = f"http://127.0.0.1:{port}"
            costs: dict[str, float] = {}
            for connections in CONNECTIONS:
                ask(f"{url}/v1/completions", connections, 1, script)
                before = processor_seconds(running) if running else 0.0
                p50, p99, count = ask(f"{url}/v1/completions", connections, SECONDS, script)
                costs[f"p50 at {connections}"], costs[f"p99 at {connections}"] = p50, p99
                if running:
                    costs[f"CPU at {connections}"] = 1000 * (processor_seconds(running) - before) / max(1, count)
            return costs
    finally:
        shutil.rmtree(directory, ignore_errors=True)
