"""A series of runs in real time: every contestant in its scenarios, and what each adds to a request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import overhead, real
from benchmarks.contestant import Contestant, ContestantError
from benchmarks.fleet import in_one_scheduling_group
from benchmarks.matrix import contestants_of
from benchmarks.progress import progress
from benchmarks.results import begin

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.results import Results
    from benchmarks.scenario import Scenario

# The share of a scenario's time for contestants that run in real time and so take ten times as long.
REAL_TIME_SHARE = 0.45
WITHOUT_OVERHEAD = ("ours-stepped", "ours-static")  # a request meets the same proxy as with ours-capacity


def run_all(options: argparse.Namespace) -> Results:
    """Run a series, seed by seed, so that a series that is ended early has all scenarios.

    Saves the results after each run.
    """
    contestants, missing = available(options.contestants)
    results = begin(options)
    results.missing |= missing
    if not in_one_scheduling_group():
        print("note: another scheduling group than the parent's; see kernel.sched_autogroup_enabled", flush=True)
    jobs = [
        (contestant, scenario, seed)
        for seed in range(options.seeds)
        for scenario in options.scenarios
        for contestant in contestants_of(scenario, contestants)
        if not (seed and contestant.real_time)
    ]
    todo = [job for job in jobs if not results.has(job[0].name, job[1].name, job[2])]
    began = time.monotonic()
    for done, job in enumerate(todo):
        print(progress(done, len(todo), time.monotonic() - began), end=" ", flush=True)
        run_one(*job, results, options)
    if not options.no_overhead:
        measure_overhead(contestants, results)
    return results


def run_one(
    contestant: Contestant, scenario: Scenario, seed: int, results: Results, options: argparse.Namespace
) -> None:
    """Run one contestant in one scenario with one seed, print how it went, and save it."""
    print(f"{scenario.name} {contestant.name} seed {seed}", end=" ", flush=True)
    scale, share = options.scale, options.shorten
    if contestant.real_time:
        scale, share = 1.0, options.shorten * REAL_TIME_SHARE
    began = time.monotonic()
    try:
        summary = real.play(contestant, scenario.shortened(share), seed, scale, options.trace)
    except ContestantError as error:
        results.missing[contestant.name] = str(error)
        print(f"MISSING: {error}", flush=True)
        return
    results.add(contestant.name, scenario.name, seed, summary)
    results.save(options.results)
    print(f"{summary} ({time.monotonic() - began:.0f} s)", flush=True)


def available(contestants: Sequence[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Return the contestants that can run here, and by name why others cannot. Installs what comes from PyPI."""
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
    """Measure what each contestant adds to a request, and a node without a proxy."""
    proxies: list[Contestant | None] = [each for each in contestants if each.name not in WITHOUT_OVERHEAD]
    for contestant in [None, *proxies]:
        name = contestant.name if contestant else "no proxy"
        if name in results.overhead:
            continue
        print(f"overhead: {name}", flush=True)
        try:
            results.overhead[name] = overhead.measure(contestant)
        except ContestantError as error:
            print(f"overhead of {name} not measured: {error}", flush=True)
            results.missing[f"overhead of {name}"] = str(error)
