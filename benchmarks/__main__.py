"""Command line of the benchmark: `python -m benchmarks --help`."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from benchmarks.command_line import parse_arguments
from benchmarks.compact import compact_report
from benchmarks.plot import plot
from benchmarks.ratio_plot import plot_ratios
from benchmarks.real_series import run_all
from benchmarks.results import Results
from benchmarks.tables import markdown_report, text_report
from benchmarks.virtual.series import find_knee, play_all

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def finish(results: Results, options: argparse.Namespace) -> None:
    """Print the tables, and write the result file with its tables and its picture beside it."""
    path = options.results
    results.save(path)
    path.with_suffix(".md").write_text(markdown_report(results), encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    print("\n" + text_report(results) + f"\n\n{path}, {path.with_suffix('.md').name}, {path.with_suffix('.png').name}")


def show(options: argparse.Namespace) -> None:
    """Print the tables of a result file in Markdown, and draw its picture if one is wanted."""
    results = Results.load(options.results)
    if options.picture:
        draw(results, options.picture)
    print(compact_report(results) if options.compact else markdown_report(results))


def draw(results: Results, path: Path) -> None:
    """Draw the picture of results, as fits their number of scenarios."""
    (plot_ratios if results.conditions["mode"] == "virtual" else plot)(results, path)


def main() -> int:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that contexts end their processes
    options = parse_arguments()
    match options.mode:
        case "virtual":
            finish(play_all(options), options)
        case "knee":
            find_knee(options.seeds)
        case "show":
            show(options)
        case _:
            finish(run_all(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
