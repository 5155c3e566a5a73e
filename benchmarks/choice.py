"""Measure how long the balancer `work` takes to choose a node, and to count the request there.

    python -m benchmarks.choice

Prints a table for docs/benchmark.md: microseconds of processor time per choice, by the number of nodes and workers. One
worker of a real nginx chooses; where nodes are busy, the rows of the other workers change between two choices.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from benchmarks.processes import await_answer, started
from benchmarks.proxies.nginx import command
from benchmarks.proxies.outstanding_work import LUA_MODULES, PHASES
from benchmarks.real import free_ports
from benchmarks.scenario import LUA

LIMIT = 100  # µs, among a thousand nodes
SIZES = ((10, 1), (100, 1), (1000, 1), (1000, 16))  # nodes, workers
MAX_CONNS = 8
ALL, ALL_BUT_ONE = -1, -2
# Each case: arguments of benchmarks/choice.lua.
CASES: dict[str, dict[str, int]] = {
    "all nodes idle": {},
    "all nodes busy": {"busy": 1},
    "`vllm_max_conns`, idle": {"max_conns": MAX_CONNS},
    "`vllm_max_conns`, busy": {"max_conns": MAX_CONNS, "busy": 1},
    "`vllm_max_conns`, all full but one": {"max_conns": MAX_CONNS, "full": ALL_BUT_ONE},
    "one node ejected, idle": {"out": 1},
    "one node ejected, busy": {"out": 1, "busy": 1},
    "one node ejected, `vllm_max_conns`, idle": {"out": 1, "max_conns": MAX_CONNS},
    "all KV caches full but one, busy": {"kv_full": ALL_BUT_ONE, "busy": 1},
    "all KV caches full": {"kv_full": ALL},
    "all ejected but one": {"out": ALL_BUT_ONE},
    "all ejected, `vllm_max_conns`": {"out": ALL, "max_conns": MAX_CONNS},
    "a prompt of 16 KiB that nobody has cached": {"marks": 16},
    "a prompt of 16 KiB, half of it cached": {"marks": 16, "shared": 8},
    "a prompt of 1 MiB that nobody has cached": {"marks": 112},
    "a prompt of 1 MiB that is cached": {"marks": 112, "shared": 112},
}
NGINX = """\
{modules}
{user}daemon off; worker_processes 1; pid nginx.pid; error_log error.log; events {{}}
http {{
    access_log off;
    lua_package_path "{lua}/?.lua;;";
    lua_shared_dict vllm_nginx_lb 10m; lua_shared_dict vllm_nginx_lb_prefixes 16m; lua_shared_dict measured 10m;
    init_by_lua_block {{ {phases}.init([==[{settings}]==]) }}
    init_worker_by_lua_block {{ {phases}.init_worker() }}
    server {{
        listen 127.0.0.1:{port};
        location = /choice {{ content_by_lua_file {script}; }}
        location = /health {{ return 200; }}
    }}
}}
"""


def weights(count: int) -> str:
    """Return a weights.json of equal nodes."""
    nodes = [
        {"name": f"node-{i}", "address": f"127.1.{i // 250}.{1 + i % 250}", "port": 8000, "weight": 100}
        for i in range(count)
    ]
    return json.dumps({"version": 1, "generation": "0a", "pools": [{"name": "llm_cluster", "nodes": nodes}]})


def measure(count: int, workers: int) -> dict[str, float]:
    """Return microseconds per choice among so many nodes, by the name of the case."""
    directory = Path(tempfile.mkdtemp(prefix="vllm-nginx-lb-bench-"))
    try:
        directory.chmod(0o755)  # nginx's workers give up root
        (directory / "weights.json").write_text(weights(count))
        script = directory / "choice.lua"
        shutil.copy(Path(__file__).with_name("choice.lua"), script)
        [port] = free_ports(1)
        settings = {"file": str(directory / "weights.json"), "upstream_file": str(directory / "none")}
        settings_json = json.dumps(settings | {"ramp_seconds": 0, "affinity": "prefix"})
        (directory / "nginx.conf").write_text(
            NGINX.format(
                modules="".join(f"load_module {module};" for module in LUA_MODULES),
                user="" if os.geteuid() else "user root; ",
                lua=LUA,
                phases=PHASES,
                settings=settings_json,
                port=port,
                script=script,
            )
        )
        log = directory / "nginx.log"
        with started(command(directory), log, dict(os.environ)) as process:
            await_answer(f"http://127.0.0.1:{port}/health", process, log)
            return {name: ask(port, count, workers, case) for name, case in CASES.items()}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def ask(port: int, count: int, workers: int, case: dict[str, int]) -> float:
    """Measure one case."""
    defaults = {"workers": workers, "max_conns": 0, "out": 0, "full": 0, "kv_full": 0}
    defaults |= {"busy": 0, "marks": 0, "shared": 0}
    counts = {ALL: count, ALL_BUT_ONE: count - 1}
    wanted = defaults | {name: counts.get(value, value) for name, value in case.items()}
    with urlopen(f"http://127.0.0.1:{port}/choice?{urlencode(wanted)}", timeout=120) as answer:
        return float(answer.read())


def main() -> None:
    """Measure and print."""
    columns = {size: measure(*size) for size in SIZES}
    heads = [f"{nodes:,} nodes, {workers} worker{'s' * (workers > 1)}" for nodes, workers in SIZES]
    print(f"| µs per choice | {' | '.join(heads)} |")
    print("| --- |" + " ---: |" * len(SIZES))
    for name in CASES:
        print(f"| {name} | " + " | ".join(f"{column[name]:.0f}" for column in columns.values()) + " |")
    limited = [name for name, case in CASES.items() if "marks" not in case]
    worst = max(column[name] for column in columns.values() for name in limited)
    print(f"\nThe longest without prefix marks takes {worst:.0f} µs (limit {LIMIT}).")


if __name__ == "__main__":
    main()
