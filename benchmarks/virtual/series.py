"""A series of runs in virtual time, on all processors, and the search for the knee."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.progress import progress
from benchmarks.results import begin
from benchmarks.scenario import BY_NAME
from benchmarks.virtual import CONTESTANTS
from benchmarks.virtual.run import play

if TYPE_CHECKING:
    import argparse

    from benchmarks.results import Results

GOOD_SHARE = 0.95  # of requests, up to the knee


def play_all(options: argparse.Namespace) -> Results:
    """Play a series, seed by seed, so that a series that is ended early has all scenarios.

    Saves the results whenever a run has ended.
    """
    results = begin(options)
    jobs = [
        (contestant, scenario, seed)
        for seed in range(options.seeds)
        for scenario in options.scenarios
        for contestant in options.contestants
        if len(scenario.speeds) <= contestant.most_nodes
    ]
    todo = [job for job in jobs if not results.has(job[0].name, job[1].name, job[2])]
    began = time.monotonic()
    pool = ProcessPoolExecutor()
    try:
        runs = {pool.submit(play, *job, options.trace): job for job in todo}
        for done, run in enumerate(as_completed(runs)):
            contestant, scenario, seed = runs[run]
            print(progress(done, len(todo), time.monotonic() - began), end=" ")
            print(f"{scenario.name} {contestant.name} seed {seed} {run.result()}", flush=True)
            results.add(contestant.name, scenario.name, seed, run.result())
            results.save(options.results)
    finally:
        pool.shutdown(cancel_futures=True)
    results.sort([each.name for each in CONTESTANTS])
    return results


def find_knee(seeds: int) -> None:
    """Print, for rising loads, the share of requests that are good with fresh join-the-shortest-queue.

    Ends at the first load at which that is below GOOD_SHARE. Loads are shares of scenario.KNEE.
    """
    jsq = next(each for each in CONTESTANTS if each.name == "limit-jsq")
    for percent in range(80, 125, 5):
        scenario = replace(BY_NAME["equal-75"], load=percent / 100)
        good = sum(play(jsq, scenario, seed).goodput for seed in range(seeds)) / seeds
        print(f"{percent} % of the knee, {scenario.rate:.2f} requests/s: {good:.1%} good", flush=True)
        if good < GOOD_SHARE:
            break
