"""Command line of the benchmark: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import overhead, real, virtual
from benchmarks.contestant import Contestant, ContestantError
from benchmarks.fleet import in_one_scheduling_group
from benchmarks.nginxes import NGINXES, SCRIPT
from benchmarks.peers import PEERS
from benchmarks.report import Results, markdown_report, plot, text_report
from benchmarks.scenario import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.figures import Figures

RESULTS = Path(__file__).parent / "results"
# What runs in these scenarios alone, so that a full run takes two hours: variants of a product, those that differ from
# another in these alone, and those that are there to show what something costs.
ONLY_IN = {
    "nginx-least-conn-no-zone": {"equal-75"},
    "nginx-random-two": {"equal-75"},
    "article": {"equal-75", "unequal", "slowed", "long-streams"},
    "ours-stepped": {"equal-75", "unequal", "slowed", "frozen", "long-streams"},
    "ours-static": {"unequal"},  # on nodes of equal capacity it is nginx-least-conn
    "ours-work-prefix": {"multi-turn"},
    "haproxy-weights": {"unequal", "slowed"},
    "vllm-router-power-of-two": {"equal-75", "unequal"},
    "vllm-router-round-robin": {"equal-75"},
    "sglang-router-power-of-two": {"equal-75", "unequal"},
    "litellm": {"equal-75"},
    "litellm-least-busy": {"equal-75"},
}
READS_METRICS = {"nginx-least-conn", "article", "ours-stepped", "ours-capacity", "ours-work"}
QUICK_CONTESTANTS = ("nginx-least-conn", "ours-work", "haproxy-leastconn")
QUICK_SCENARIOS = ("equal-75", "unequal")
SEEDS_VIRTUAL = 5


def contestants_of(scenario: Scenario, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Return those contestants for which a scenario says something."""
    found = [each for each in contestants if scenario.name in ONLY_IN.get(each.name, {scenario.name})]
    return [each for each in found if each.name in READS_METRICS] if scenario.metrics_only else found


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return under what conditions figures come about: they are comparable if these are equal."""
    return {
        "script": hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:16],
        "mode": options.mode,
        "scale": options.scale,
        "shortened": options.shorten,
        "trace": options.trace.name if options.trace else None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {name: version(words) for name, words in VERSIONS.items()},
    }


VERSIONS = {
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    **{
        name: (f".cache/bench/{name}/bin/pip", "show", name, "--no-color")
        for name in ("vllm-router", "sglang-router", "litellm")
    },
}


def version(words: Sequence[str]) -> str:
    """Return what a program says of its version, or "missing"."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}, timeout=60
        )
    except OSError:
        return "missing"
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if "ersion" in line), "missing").strip()


def run_real(options: argparse.Namespace) -> int:
    """Run tier 2: seed by seed, so that what is there at any moment is as complete as it can be."""
    path = RESULTS / f"{options.mode}.json"
    contestants, missing = available(options.contestants)  # which installs them, so that they have versions
    results = Results(conditions(options), missing=missing)
    if options.resume and path.exists():
        before = Results.load(path)
        if before.conditions != results.conditions:
            changed = [k for k in results.conditions if results.conditions[k] != before.conditions.get(k)]
            sys.exit(f"{path}: made under other conditions ({', '.join(changed)}): run without --continue")
        results = before
        results.missing |= missing
    if not in_one_scheduling_group():
        print("note: another scheduling group than the parent's; see kernel.sched_autogroup_enabled", flush=True)
    jobs = [
        (seed, scenario, contestant)
        for seed in range(options.seeds)
        for scenario in options.scenarios
        for contestant in contestants_of(scenario, contestants)
        if not (seed and contestant.real_time)  # two minutes each
    ]
    todo = [job for job in jobs if not results.has(job[2].name, job[1].name, job[0])]
    began = time.monotonic()
    for done, (seed, scenario, contestant) in enumerate(todo):
        eta = "" if not done else f", about {(time.monotonic() - began) / done * (len(todo) - done) / 60:.0f} min left"
        print(f"[{done + 1}/{len(todo)}{eta}] {scenario.name} {contestant.name} seed {seed}", end=" ", flush=True)
        try:
            # In life's own time only the first part of it, so that it does not take ten times as long.
            scale, shorten = (1.0, options.shorten * 0.45) if contestant.real_time else (options.scale, options.shorten)
            figures, seconds = real.timed(contestant, scenario.shortened(shorten), seed, scale, options.trace)
        except ContestantError as error:
            results.missing[contestant.name] = str(error)
            print(f"MISSING: {error}", flush=True)
            continue
        results.add(contestant.name, scenario.name, seed, figures)
        results.save(path)
        print(
            f"p50 {figures.ttft_p50:.0f} p99 {figures.ttft_p99:.0f} ms, "
            f"{figures.failed} failed, {figures.cut} cut ({seconds:.0f} s)",
            flush=True,
        )
    if not options.no_overhead:
        measure_overhead(contestants, results)
    finish(results, path)
    return 0


def available(contestants: Sequence[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Return the contestants that can run here, and why the others cannot, by name."""
    found, missing = [], {}
    for contestant in contestants:
        why = contestant.missing()
        if why:
            missing[contestant.name] = why
            print(f"MISSING {contestant.name}: {why}", flush=True)
        else:
            found.append(contestant)
    return found, missing


def measure_overhead(contestants: Sequence[Contestant], results: Results) -> None:
    """Measure what each contestant adds to a request, and a node asked without any."""
    plain: list[Contestant | None] = [each for each in contestants if each.name not in ("ours-stepped", "ours-static")]
    for contestant in [None, *plain]:
        name = contestant.name if contestant else "no proxy"
        if name in results.overhead:
            continue
        print(f"overhead: {name}", flush=True)
        try:
            results.overhead[name] = overhead.measure(contestant)
        except ContestantError as error:
            print(f"overhead of {name} not measured: {error}", flush=True)
            results.missing[f"overhead of {name}"] = str(error)


def finish(results: Results, path: Path) -> None:
    """Print the tables, and write JSON, Markdown and the plot."""
    results.save(path)
    path.with_suffix(".md").write_text(markdown_report(results), encoding="utf-8")
    plot(results, path.with_suffix(".svg"))
    print("\n" + text_report(results) + f"\n\n{path}, {path.with_suffix('.md').name}, {path.with_suffix('.svg').name}")


def run_virtual(options: argparse.Namespace) -> int:
    """Run tier 1 on all processors."""
    results = Results(conditions(options))
    for figures in play_virtual(options.scenarios, virtual.CONTESTANTS, options.seeds, options.trace):
        results.add(*figures)
    finish(results, RESULTS / "virtual.json")
    return 0


def play_virtual(
    scenarios: Sequence[Scenario], contestants: Sequence[virtual.Contestant], seeds: int, trace: Path | None
) -> Iterator[tuple[str, str, int, Figures]]:
    """Yield contestant, scenario, seed and figures of each run, in a fixed order."""
    jobs = [(c, s, seed) for s in scenarios for c in contestants for seed in range(seeds)]
    with ProcessPoolExecutor() as pool:
        runs = [pool.submit(virtual.play, *job, trace) for job in jobs]
        for done, ((contestant, scenario, seed), run) in enumerate(zip(jobs, runs, strict=True)):
            if done % 10 == 0:
                print(f"[{done}/{len(jobs)}] {scenario.name}", flush=True)
            yield contestant.name, scenario.name, seed, run.result()


GOOD_SHARE = 0.95


def find_knee(options: argparse.Namespace) -> int:
    """Print the load, as a share of the configured knee, up to which 95 % of requests are good with fresh JSQ."""
    limit = next(each for each in virtual.CONTESTANTS if each.name == "limit-jsq")
    base = next(each for each in SCENARIOS if each.name == "equal-75")
    for percent in range(80, 125, 5):
        scenario = replace(base, load=percent / 100)
        runs = [virtual.play(limit, scenario, seed).goodput for seed in range(options.seeds)]
        share = sum(runs) / len(runs)
        print(f"{percent} % of the knee, {scenario.rate:.2f} requests/s: {share:.1%} good", flush=True)
        if share < GOOD_SHARE:
            break
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [each.name for each in (*NGINXES, *PEERS)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("mode", choices=("quick", "full", "virtual", "knee", "show"), help="what to run")
    parser.add_argument("--only", metavar="A,B", help=f"these contestants alone: {', '.join(names)}")
    parser.add_argument("--scenarios", metavar="A,B", help=f"these alone: {', '.join(s.name for s in SCENARIOS)}")
    parser.add_argument("--seeds", type=int, help="runs of each (3 in full, 1 in quick, 5 in virtual time)")
    parser.add_argument("--scale", type=float, default=0.1, help="real seconds per second of the model (0.1)")
    parser.add_argument("--shorten", type=float, default=0.4, help="share of each scenario's time (0.4)")
    parser.add_argument("--trace", type=Path, help="replay this file in Azure's CSV format instead of drawing requests")
    parser.add_argument("--continue", dest="resume", action="store_true", help="keep the runs that are there")
    parser.add_argument("--no-overhead", action="store_true", help="leave out what a proxy adds to a request")
    options = parser.parse_args(arguments)
    quick = options.mode == "quick"
    options.seeds = options.seeds or {"quick": 1, "full": 3}.get(options.mode, SEEDS_VIRTUAL)
    wanted = options.only.split(",") if options.only else QUICK_CONTESTANTS if quick else names
    scenarios = options.scenarios.split(",") if options.scenarios else QUICK_SCENARIOS if quick else ()
    unknown = set(wanted) - set(names) or set(scenarios) - {each.name for each in SCENARIOS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --help lists what there is")
    options.contestants = [each for each in (*NGINXES, *PEERS) if each.name in wanted]
    options.scenarios = [each for each in SCENARIOS if not scenarios or each.name in scenarios]
    return options


def main() -> int:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that all processes are ended, too
    options = parse_arguments()
    match options.mode:
        case "virtual":
            return run_virtual(options)
        case "knee":
            return find_knee(options)
        case "show":
            print(markdown_report(Results.load(RESULTS / "full.json")))
            return 0
        case _:
            return run_real(options)


if __name__ == "__main__":
    sys.exit(main())
