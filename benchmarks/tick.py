"""Measure what one tick costs: its processor time, duration and memory over 4, 100 and 1,000 nodes.

    python3 benchmarks/tick.py [--python /usr/bin/python3] [--runs 15] [--against CHECKOUT]

The script is a copy as the role installs it, with the package compiled. --against measures the script of another
checkout of this project too, in turn with this one. The nodes are addresses of 127.0.0.0/8 at which nginx serves a
recording of vLLM's /metrics. The same nginx plays the ingress, so that a tick ends as in production: it asks for the
live generation. The measuring itself needs the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # when this runs as a script, its folder is there alone

from benchmarks.cost import measure, medians  # noqa: E402
from benchmarks.installed import install  # noqa: E402
from benchmarks.script_to_measure import Script  # noqa: E402

IMPORTS = "import requests, jinja2, yaml, prometheus_client.parser"
FIRST_PORT = 18390  # each script measured has two ports: one of its nodes, one of its ingress
FLEETS = (4, 100, 1000)  # numbers of nodes
RUNS_OF_LARGE_FLEETS = 3
# By name of a result, the most that it may be.
LIMITS = {
    "tick / imports": 1.6,
    "(collect + apply) / imports": 1.5,
    "tick / one that records nothing": 1.1,
    "seconds, 1,000 nodes": 5.0,
    "MB, 1,000 nodes": 150.0,
}


def measure_all(scripts: list[Script], python: str, runs: int) -> list[dict[str, float]]:
    """Return the results of each script by name. The first tick over each fleet publishes and does not count."""
    print(f"4 nodes, {runs} runs ...", flush=True)
    commands = [[python, "-c", "pass"], [python, "-c", IMPORTS]]
    for script in scripts:
        commands += [script.version(), *(script.command(4, each) for each in ("run", "collect", "apply"))]
        commands += [*script.halves(bare=False), *script.halves(bare=True)]
    start, imports, *costs = medians(commands, runs)
    results = []
    for i in range(len(scripts)):
        version, tick, collect, apply, *halves = (each.cpu for each in costs[8 * i : 8 * i + 8])
        results.append(
            {
                "imports, CPU seconds": imports.cpu,
                "Python alone, CPU seconds": start.cpu,
                "--version, CPU seconds": version,
                "collect, CPU seconds": collect,
                "apply, CPU seconds": apply,
                "tick / imports": tick / imports.cpu,
                "(collect + apply) / imports": (collect + apply) / imports.cpu,
                "tick / one that records nothing": sum(halves[:2]) / sum(halves[2:]),
            }
        )
    for nodes in FLEETS:
        times = runs if nodes == FLEETS[0] else RUNS_OF_LARGE_FLEETS
        print(f"{nodes:,} nodes, {times} runs ...", flush=True)
        ticks = [script.command(nodes) for script in scripts]
        for each in ticks:
            measure(each)
        for result, cost in zip(results, medians(ticks, times), strict=True):
            result[f"CPU seconds, {nodes:,} nodes"] = cost.cpu
            result[f"seconds, {nodes:,} nodes"] = cost.wall
            result[f"MB, {nodes:,} nodes"] = cost.memory
    return results


def report(results: list[dict[str, float]], names: list[str]) -> bool:
    """Print the results of each script side by side, with the limits; tell whether the first one keeps them all."""
    kept = True
    print(f"  {'':<34}" + "".join(f" {name:>12}" for name in names))
    for name, value in results[0].items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"  limit {limit:g}: {'kept' if value <= limit else 'EXCEEDED'}"
        kept = kept and (limit is None or value <= limit)
        print(f"  {name:<34}" + "".join(f" {result[name]:12.3f}" for result in results) + verdict)
    return kept


def main() -> int:
    """Run the benchmark; exit code 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="/usr/bin/python3", help="the Python to measure with (%(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="runs over 4 nodes (%(default)s)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="a checkout whose script is measured too")
    options = parser.parse_args()
    checkouts = {"this": ROOT} | ({"against": options.against} if options.against else {})
    with tempfile.TemporaryDirectory(prefix="vllm-nginx-lb-bench-") as folder, contextlib.ExitStack() as running:
        Path(folder).chmod(0o755)  # nginx's workers give up root
        scripts = []
        for i, (name, checkout) in enumerate(checkouts.items()):
            directory = Path(folder) / name
            entry = install(checkout, directory / "script", options.python)
            script = Script(name, options.python, directory, entry, FIRST_PORT + 2 * i, FIRST_PORT + 2 * i + 1)
            running.enter_context(script.nginx())
            scripts.append(script)
        results = measure_all(scripts, options.python, options.runs)
    version = subprocess.run([options.python, "--version"], capture_output=True, text=True, check=True)
    print(f"{version.stdout.strip()} on {platform.platform()}, {os.cpu_count()} cores, medians:")
    return 0 if report(results, list(checkouts)) else 1


if __name__ == "__main__":
    sys.exit(main())
