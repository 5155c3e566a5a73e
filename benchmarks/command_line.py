"""The arguments of `python -m benchmarks`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.matrix import QUICK_CONTESTANTS, QUICK_SCENARIOS
from benchmarks.proxies import CONTESTANTS
from benchmarks.results import FOLDER
from benchmarks.scenario import BY_NAME, GROUPS, SCENARIOS
from benchmarks.virtual import CONTESTANTS as VIRTUAL_CONTESTANTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.scenario import Scenario

MODES = {
    "quick": "three contestants, two scenarios, in real time: about three minutes",
    "full": "all of them but scenarios with many nodes or other engines, in real time: hours",
    "virtual": "nginx modelled, in virtual time, on all processors",
    "knee": "the load up to which 95 %% of requests are good with fresh join-the-shortest-queue",
    "show": "no run: print the tables of a result file in Markdown",
}
SEEDS = {"quick": 1, "full": 3}
SEEDS_OF_OTHERS = 5
TRACE_HELP = "replay this file instead of drawing requests: Azure's CSV format, or Mooncake's if it ends in .jsonl"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, None for that of the process; exits with 2 on a wrong argument.

    Returns:
        What the options say. `contestants` and `scenarios` are lists of Contestant and Scenario, `seeds` is a number,
        `results` a path. In the mode virtual the contestants are those of benchmarks/virtual.
    """
    names, virtual_names = ([each.name for each in group] for group in (CONTESTANTS, VIRTUAL_CONTESTANTS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the balancer against what people would use instead.",
        epilog=f"Result files are in {FOLDER.relative_to(FOLDER.parents[1])}/: JSON, tables in Markdown, a picture.",
    )
    parser.add_argument("mode", choices=MODES, help="; ".join(f"{name}: {text}" for name, text in MODES.items()))
    in_virtual_time = f"in virtual time: {', '.join(virtual_names)}"
    only = f"only these contestants: {', '.join(names)}; {in_virtual_time}"
    parser.add_argument("--only", metavar="A,B", help=only)
    parser.add_argument("--scenarios", metavar="A,B", help=f"only these: {', '.join((*GROUPS, *BY_NAME))}")
    parser.add_argument("--seeds", type=int, help="runs of each (3 in full, 1 in quick, 5 in virtual time)")
    parser.add_argument("--scale", type=float, default=0.1, help="real seconds per second of the model (0.1)")
    parser.add_argument("--shorten", type=float, default=0.4, help="share of each scenario's time (0.4)")
    parser.add_argument("--trace", type=Path, help=TRACE_HELP)
    parser.add_argument("--continue", dest="resume", action="store_true", help="keep the runs that are in the file")
    parser.add_argument("--no-overhead", action="store_true", help="leave out what a proxy adds to a request")
    parser.add_argument(
        "--compact", action="store_true", help="of show: one table a group, with a row for each scenario"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of show: draw the picture into this PNG file")
    parser.add_argument("--results", type=Path, metavar="FILE", help="result file (MODE.json; of show: full.json)")
    options = parser.parse_args(arguments)
    quick = options.mode == "quick"
    contestants = VIRTUAL_CONTESTANTS if options.mode == "virtual" else CONTESTANTS
    names = [each.name for each in contestants]
    options.seeds = options.seeds or SEEDS.get(options.mode, SEEDS_OF_OTHERS)
    options.results = options.results or FOLDER / f"{'full' if options.mode == 'show' else options.mode}.json"
    wanted = options.only.split(",") if options.only else QUICK_CONTESTANTS if quick else names
    scenarios = options.scenarios.split(",") if options.scenarios else QUICK_SCENARIOS if quick else ()
    unknown = set(wanted) - set(names) or set(scenarios) - {*GROUPS, *BY_NAME}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --help lists what there is")
    too_large = [name for name in scenarios if name in BY_NAME and BY_NAME[name].virtual_only]
    if too_large and options.mode != "virtual":
        parser.error(f"only in virtual time: {', '.join(too_large)}")
    if options.mode == "show" and not options.results.exists():
        parser.error(f"{options.results}: no such file; a run in the mode quick, full or virtual writes one")
    options.contestants = [each for each in contestants if each.name in wanted]
    options.scenarios = scenarios_of(scenarios or tuple(GROUPS), virtual=options.mode == "virtual")
    return options


def scenarios_of(names: Sequence[str], *, virtual: bool) -> list[Scenario]:
    """Return the scenarios with these names, or of groups with these names, as far as they run in that kind of time."""
    wanted = {each for name in names for each in GROUPS.get(name, (name,))}
    return [each for each in SCENARIOS if each.name in wanted and (virtual or not each.virtual_only)]
