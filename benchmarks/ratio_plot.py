"""The picture of a result file with many scenarios: a row for each, and in it a mark for each contestant.

A mark stands at the p99 time to first token, as a ratio to that of nginx's `least_conn`, on a logarithmic axis.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import Image

from benchmarks.compact import EXACT, OURS
from benchmarks.scenario import GROUPS
from benchmarks.tables import BASELINE, peers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.results import Results

DOTS_PER_INCH, COLOURS = 80, 128
WIDTH, ROW_HEIGHT, FRAME_HEIGHT, LEGEND_HEIGHT = 11.0, 0.27, 0.7, 0.6  # inches
GAP = 2.0  # rows from the last scenario of a group to the first of the next one
# Ratios at the ends of the axis. It begins below 0.2 where a mark does. A mark beyond 5 stands at the end.
LEAST, MOST = 0.2, 5.0
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
# Shapes, and colours that people with any kind of colour vision can tell apart; those of peers in turn. Ours is a ring
# that hides no mark.
OURS_STYLE = {"marker": "o", "facecolors": "none", "edgecolors": "#009E73", "s": 130, "zorder": 5, "linewidths": 2.5}
EXACT_STYLE = {"marker": "|", "color": "black", "s": 150, "zorder": 4, "linewidths": 2.5}
PEER_SHAPES = "XsDv^P<*>"
PEER_COLOURS = ("#888888", "#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#B8A300")


def plot_ratios(results: Results, path: Path) -> None:
    """Draw ours, each peer and the exact limit; write a PNG file. Scenarios without BASELINE are left out."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - the back end is chosen first

    ratios = ratios_of(results.of_common_seeds())
    places = places_of(ratios)
    height = LEGEND_HEIGHT + FRAME_HEIGHT + ROW_HEIGHT * (max(places.values(), default=0) + GAP)
    picture, axis = plt.subplots(figsize=(WIDTH, height))
    least = min([LEAST, *(0.85 * ratio for found in ratios.values() for ratio in found.values())])
    draw_frame(axis, places, least)
    for name, style in styles_of(ratios).items():
        shown = {scenario: found[name] for scenario, found in ratios.items() if name in found}
        at = [min(MOST, ratio) for ratio in shown.values()]
        axis.scatter(at, [places[scenario] for scenario in shown], label=name, clip_on=False, **style)
    if ratios:
        picture.legend(loc="upper center", ncols=5, fontsize=9, frameon=False)
    picture.tight_layout(rect=(0, 0, 1, 1 - LEGEND_HEIGHT / height))
    # Without date and version, so that the same results make the same file.
    picture.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(picture)
    with Image.open(path) as many_colours:
        few_colours = many_colours.convert("RGB").quantize(COLOURS)  # a third of the size
    few_colours.save(path, optimize=True)


def ratios_of(results: Results) -> dict[str, dict[str, float]]:
    """Return, by scenario and contestant, the p99 of ours, the exact limit and each peer as a ratio to BASELINE's."""
    found = {}
    for scenario in results.scenarios:
        p99 = {name: spread["ttft_p99"].mean for name, spread in results.spreads(scenario).items()}
        if p99.get(BASELINE):
            names = [name for name in (OURS, EXACT, *peers_of(p99)) if name in p99 and name != BASELINE]
            found[scenario] = {name: p99[name] / p99[BASELINE] for name in names}
    return found


def places_of(scenarios: Iterable[str]) -> dict[str, float]:
    """Return the row of each scenario, from 0 at the top; groups stand apart."""
    places: dict[str, float] = {}
    for group in GROUPS.values():
        first = max(places.values()) + GAP if places else 0.0
        places |= {name: first + i for i, name in enumerate(name for name in group if name in scenarios)}
    return places


def styles_of(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return, by contestant, what its marks look like."""
    names = dict.fromkeys(name for found in ratios.values() for name in found)
    styles: dict[str, dict[str, Any]] = {OURS: OURS_STYLE, EXACT: EXACT_STYLE}
    looks = zip(cycle(PEER_SHAPES), cycle(PEER_COLOURS), strict=False)
    for name, (shape, colour) in zip(peers_of(names), looks, strict=False):
        styles[name] = {"marker": shape, "color": colour, "s": 38, "zorder": 3}
    return {name: style for name, style in styles.items() if name in names}


def draw_frame(axis: Axes, places: Mapping[str, float], least: float) -> None:
    """Draw the axes from the ratio `least` on, a line for each scenario, and the name of each group above its own."""
    axis.set_xscale("log")
    axis.set_xlim(least, MOST)
    ticks = [tick for tick in TICKS if tick >= least]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
    axis.set_xticks([], minor=True)
    axis.set_xlabel(f"p99 time to first token / that of {BASELINE}; those beyond {MOST:g} stand at the end", fontsize=9)
    axis.set_yticks(list(places.values()), list(places), fontsize=9)
    axis.set_ylim(max(places.values(), default=0) + 0.7, -1.5)
    axis.hlines(list(places.values()), least, MOST, color="#dddddd", linewidth=0.8, zorder=0)
    axis.axvline(1, color="#666666", linewidth=1, zorder=1)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "left", "right"]].set_visible(False)
    for group, names in GROUPS.items():
        first = next((places[name] for name in names if name in places), None)
        if first is not None:
            axis.text(least, first - 0.6, f"{group} ", ha="right", va="bottom", fontsize=9, fontweight="bold")
