"""A series of runs in virtual time, on all processors, and the search for the knee."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.scenario import BY_NAME
from benchmarks.virtual import CONTESTANTS
from benchmarks.virtual.run import play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.scenario import Scenario
    from benchmarks.summary import Summary
    from benchmarks.virtual.contestant import Contestant

GOOD_SHARE = 0.95  # of requests, up to the knee


def play_all(
    contestants: Sequence[Contestant], scenarios: Sequence[Scenario], seeds: int, trace: Path | None
) -> Iterator[tuple[str, str, int, Summary]]:
    """Yield contestant, scenario, seed and summary of each run, in a fixed order."""
    pairs = [(c, s) for s in scenarios for c in contestants if len(s.speeds) <= c.most_nodes]
    jobs = [(*pair, seed) for pair in pairs for seed in range(seeds)]
    with ProcessPoolExecutor() as pool:
        runs = [pool.submit(play, *job, trace) for job in jobs]
        for done, ((contestant, scenario, seed), run) in enumerate(zip(jobs, runs, strict=True)):
            if done % 10 == 0:
                print(f"[{done}/{len(jobs)}] {scenario.name}", flush=True)
            yield contestant.name, scenario.name, seed, run.result()


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
