"""The picture of a result file: p99 time to first token, by scenario and contestant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from benchmarks.tables import OURS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results

CUT_AT = 4  # times the best; a longer bar leaves the picture
COLUMNS = 3
DOTS_PER_INCH = 72
DEFAULT_COLOUR, OURS_COLOUR, OTHERS_COLOUR = "#2a7", "#9cb", "#99a"


def plot(results: Results, path: Path) -> None:
    """Draw a bar for each contestant, with its range over seeds, in a panel for each scenario; write a PNG file."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - the back end is chosen first

    scenarios = results.scenarios
    columns = min(COLUMNS, max(1, len(scenarios)))
    lines = max(1, -(-len(scenarios) // columns))
    picture, axes = plt.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    for axis in axes.flat[len(scenarios) :]:
        axis.set_visible(False)
    for axis, scenario in zip(axes.flat, scenarios, strict=False):
        spreads = results.spreads(scenario)
        names = sorted(spreads, key=lambda each: -spreads[each]["ttft_p99"].mean)
        p99 = [spreads[name]["ttft_p99"] for name in names]
        means = [each.mean / 1000 for each in p99]
        below = [(each.mean - each.low) / 1000 for each in p99]
        above = [(each.high - each.mean) / 1000 for each in p99]
        axis.barh(names, means, xerr=[below, above], color=[colour_of(name) for name in names], ecolor="#444")
        axis.set_xlim(0, CUT_AT * min(means))
        for line, each in enumerate(p99):
            at = min(each.high / 1000, (CUT_AT - 0.5) * min(means))
            axis.annotate(f" {each.mean / 1000:.2f}", (at, line), va="center", fontsize=7)
        axis.set_title(scenario, fontsize=10)
        axis.set_xlabel("p99 time to first token, s", fontsize=8)
        axis.tick_params(labelsize=7)
    picture.tight_layout()
    # Without date and version, so that the same results make the same file.
    picture.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(picture)


def colour_of(contestant: str) -> str:
    """Return the colour of a contestant's bar."""
    if contestant.startswith("ours-work"):
        return DEFAULT_COLOUR
    return OURS_COLOUR if contestant.startswith(OURS) else OTHERS_COLOUR
