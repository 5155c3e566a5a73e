"""Measure what one tick costs: its processor time, duration and memory over 4, 100 and 1,000 nodes.

The nodes are addresses of 127.0.0.0/8 at which one nginx serves a recording of vLLM's /metrics; the
same nginx plays the ingress, so that a tick ends as it does in production: by asking for the live
generation. Run it with the Python that will run the script, e.g. /usr/bin/python3.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "files" / "vllm_nginx_lb.py"
RECORDING = ROOT / "tests" / "fixtures" / "vllm-0.32.0-busy.txt"
IMPORTS = "import requests, jinja2, yaml, prometheus_client.parser"
NODE_PORT, STATUS_PORT = 18390, 18391
LIMITS = {
    "tick / imports, 4 nodes": 1.6,
    "tick / one that records nothing": 1.1,
    "seconds, 1,000 nodes": 5.0,
    "MB, 1,000 nodes": 150.0,
}
# A tick, and one that neither writes down its history and metrics nor carries totals in its status: as modules, so that
# both are compiled anew as the script is.
TICK = "import sys; sys.path.insert(0, sys.argv.pop(1)); import vllm_nginx_lb as lb; sys.exit(lb.main())"
BARE_TICK = TICK.replace(
    "sys.exit",
    "lb.History.add = lambda *_: None; lb.metrics = lambda *_: ''; lb.State.last = lambda _: None; sys.exit",
)

NGINX_CONF = f"""\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    map_hash_bucket_size 256;
    include upstream.conf;
    server {{
        listen {NODE_PORT};
        location = /metrics {{ default_type "text/plain; version=1.0.0"; alias {RECORDING}; }}
    }}
    server {{
        listen 127.0.0.1:{STATUS_PORT};
        location = /generation {{ default_type text/plain; return 200 "$vllm_nginx_lb_generation $pid\\n"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Cost:
    """What one process cost: processor seconds of it and its children, wall seconds, peak memory in MB."""

    cpu: float
    wall: float
    memory: float


def measure(command: list[str]) -> Cost:
    """Run a command to its end and return what the operating system charged for it."""
    with tempfile.TemporaryFile() as stderr:  # a pipe nobody reads would stop a talkative command
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            stderr.seek(0)
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}: {stderr.read().decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def median(commands: list[list[str]], runs: int) -> list[Cost]:
    """Run several commands in turn, so that a change of the machine's speed meets all; return their medians."""
    costs: list[list[Cost]] = [[] for _ in commands]
    for _ in range(runs):
        for command, seen in zip(commands, costs, strict=True):
            seen.append(measure(command))
    return [
        Cost(*(statistics.median(getattr(cost, name) for cost in seen) for name in ("cpu", "wall", "memory")))
        for seen in costs
    ]


def write_config(directory: Path, nodes: int) -> Path:
    """Write a configuration with this many nodes, each at an address of its own, and return its path."""
    conf = directory / "nginx.conf"
    nginx = ["nginx", "-p", str(directory), "-c", str(conf)]
    config = {
        "state_directory": str(directory / f"state-{nodes}"),
        "nginx": {
            "upstream_file": str(directory / "upstream.conf"),
            "test_command": [*nginx, "-t", "-q"],
            "reload_command": [*nginx, "-s", "reload"],
            "confirm_url": f"http://127.0.0.1:{STATUS_PORT}/generation",
            "min_reload_interval_seconds": 0,
        },
        "pools": [
            {
                "name": "llm_cluster",
                "nodes": [
                    {"name": f"node-{i}", "host": f"127.1.{i // 250}.{i % 250 + 1}", "port": NODE_PORT}
                    for i in range(nodes)
                ],
            }
        ],
    }
    path = directory / f"config-{nodes}.yml"
    path.write_text(json.dumps(config))
    return path


def tick(python: str, config: Path, command: str = "run") -> list[str]:
    """Return the command line of one tick, or of one half of it."""
    return [python, str(SCRIPT), "--config", str(config), command]


def module_tick(python: str, config: Path, program: str, command: str) -> list[str]:
    """Return the command line of half a tick that is run as a module, without any compiled copy of it."""
    nowhere = config.with_name("no-compiled-modules")
    return [
        *(python, "-B", "-X", f"pycache_prefix={nowhere}", "-c", program, str(SCRIPT.parent)),
        *("--config", str(config), command),
    ]


def report(figures: dict[str, float]) -> bool:
    """Print the figures beside their limits; tell whether all are kept."""
    kept = True
    for name, value in figures.items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"  limit {limit:g}: {'kept' if value <= limit else 'EXCEEDED'}"
        kept = kept and (limit is None or value <= limit)
        print(f"  {name:<34} {value:9.3f}{verdict}")
    return kept


def main() -> int:
    """Run the benchmark; exit code 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="/usr/bin/python3", help="the Python to measure with (%(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="runs over 4 nodes (%(default)s)")
    options = parser.parse_args()
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        sys.exit("nginx is missing: make system-packages installs it")
    with tempfile.TemporaryDirectory(prefix="vllm-nginx-lb-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # nginx's workers give up root
        (directory / "nginx.conf").write_text(NGINX_CONF)
        (directory / "upstream.conf").write_text('map "" $vllm_nginx_lb_generation { default "seed"; }\n')
        server = subprocess.Popen([nginx, "-p", name, "-c", str(directory / "nginx.conf")])
        try:
            configs = {nodes: write_config(directory, nodes) for nodes in (4, 100, 1000)}
            figures = run(options.python, options.runs, configs)
        finally:
            server.terminate()
            server.wait(10)
    version = subprocess.run([options.python, "--version"], capture_output=True, text=True, check=True)
    print(f"{version.stdout.strip()} on {platform.platform()}, {os.cpu_count()} cores, medians:")
    return 0 if report(figures) else 1


def run(python: str, runs: int, configs: dict[int, Path]) -> dict[str, float]:
    """Measure everything; the first tick over each fleet publishes and is not counted."""
    four = configs[4]
    print(f"4 nodes, {runs} runs ...", flush=True)
    deadline = time.monotonic() + 10
    while subprocess.run(tick(python, four), capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            sys.exit("no tick over 4 nodes ends well: " + str(measure(tick(python, four))))
    imports, whole, collect, apply = median(
        [[python, "-c", IMPORTS], tick(python, four), tick(python, four, "collect"), tick(python, four, "apply")], runs
    )
    halves = median(
        [module_tick(python, four, program, half) for program in (TICK, BARE_TICK) for half in ("collect", "apply")],
        runs,
    )
    full, bare = (first.cpu + second.cpu for first, second in (halves[:2], halves[2:]))
    costs = {4: whole}
    for nodes, path in configs.items():
        if nodes not in costs:
            print(f"{nodes:,} nodes, 3 runs ...", flush=True)
            measure(tick(python, path))
            (costs[nodes],) = median([tick(python, path)], 3)
    figures = {
        "imports, CPU seconds": imports.cpu,
        "tick / imports, 4 nodes": whole.cpu / imports.cpu,
        "(collect + apply) / imports": (collect.cpu + apply.cpu) / imports.cpu,
        "tick / one that records nothing": full / bare,
    }
    for nodes, cost in costs.items():
        figures |= {
            f"CPU seconds, {nodes:,} nodes": cost.cpu,
            f"seconds, {nodes:,} nodes": cost.wall,
            f"MB, {nodes:,} nodes": cost.memory,
        }
    return figures


if __name__ == "__main__":
    sys.exit(main())
