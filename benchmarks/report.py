"""Keep the figures of runs in a JSON file, and show them: as tables in text and Markdown, and as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import matplotlib as mpl

from benchmarks.figures import Figures, Spread, spreads
from benchmarks.scenario import BY_NAME, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BASELINE, LIMIT = "nginx-least-conn", "limit-jsq"
OURS = ("ours-", "limit-")
CUT_AT = 4  # times the best, in the plot
COLUMNS: dict[str, tuple[str, str]] = {
    "ttft_p50": ("TTFT p50", ".0f"),
    "ttft_p90": ("p90", ".0f"),
    "ttft_p99": ("p99", ".0f"),
    "tpot_p99": ("TPOT p99", ".0f"),
    "goodput": ("goodput", ".1%"),
    "preemptions": ("preempt.", ".0f"),
    "failed": ("failed", ".0f"),
    "cut": ("cut", ".0f"),
    "reloads_per_hour": ("reloads/h", ".0f"),
    "peak_draining": ("draining", ".0f"),
    "proxy_cpu_ms": ("proxy CPU ms", ".2f"),
    "halved_after": ("halved s", ".0f"),
}


@dataclass
class Results:
    """All rows of a benchmark, and under what conditions they came about.

    Attributes:
        rows: each with contestant, scenario, seed and figures.
        missing: contestants that could not run, and why.
    """

    conditions: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    overhead: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, contestant: str, scenario: str, seed: int, figures: Figures) -> None:
        """Add a run."""
        self.rows.append({"contestant": contestant, "scenario": scenario, "seed": seed, **asdict(figures)})

    def has(self, contestant: str, scenario: str, seed: int) -> bool:
        """Tell whether a run is there."""
        return any((r["contestant"], r["scenario"], r["seed"]) == (contestant, scenario, seed) for r in self.rows)

    def spreads(self, scenario: str) -> dict[str, dict[str, Spread]]:
        """Return the figures of a scenario by contestant, in the order in which they ran first."""
        found: dict[str, list[Figures]] = {}
        for row in self.rows:
            if row["scenario"] == scenario:
                figures = {name: row.get(name) for name in Figures.__slots__}
                found.setdefault(row["contestant"], []).append(Figures(**figures))  # type: ignore[arg-type]
        return {name: spreads(runs) for name, runs in found.items()}

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios that have rows, in their order."""
        there = {row["scenario"] for row in self.rows}
        return [each.name for each in SCENARIOS if each.name in there]

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSON file that save() wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def ratio_to(figures: dict[str, dict[str, Spread]], name: str, other: str) -> str:
    """Return p99 to first token as a ratio to another contestant's."""
    if not figures[other]["ttft_p99"].mean:
        return "-"
    return f"{figures[name]['ttft_p99'].mean / figures[other]['ttft_p99'].mean:.2f}"


def best_peer(names: Iterable[str], figures: dict[str, dict[str, Spread]]) -> str:
    """Return the contestant that is not ours and has the least p99 to first token."""
    peers = [name for name in names if not name.startswith(OURS)]
    return min(peers, key=lambda name: figures[name]["ttft_p99"].mean, default="")


def cell(name: str, spread: Spread | None) -> str:
    """Return one figure for a table: the mean, for the p99 to first token with its range."""
    if spread is None:
        return "-"
    text = format(spread.mean, COLUMNS[name][1])
    if name == "ttft_p99" and spread.low != spread.high:
        text += f" ({spread.low:.0f}-{spread.high:.0f})"
    return text


def table_rows(results: Results, scenario: str) -> list[list[str]]:
    """Return a scenario's table, its head first, best p99 first."""
    figures = results.spreads(scenario)
    peer = best_peer(figures, figures)
    used = [name for name in COLUMNS if any(name in row for row in figures.values())]
    others = {"x least_conn": BASELINE, "x best peer": peer, "x limit": LIMIT}
    others = {head: other for head, other in others.items() if other in figures}
    rows = [["contestant", *(COLUMNS[name][0] for name in used), *others]]
    for name in sorted(figures, key=lambda each: figures[each]["ttft_p99"].mean):
        cells = [cell(column, figures[name].get(column)) for column in used]
        rows.append([name, *cells, *(ratio_to(figures, name, other) for other in others.values())])
    return rows


def summary_rows(results: Results) -> list[list[str]]:
    """Return p99 to first token of every contestant in every scenario as a ratio to least_conn's, its head first."""
    scenarios = {name: results.spreads(name) for name in results.scenarios}
    scenarios = {name: figures for name, figures in scenarios.items() if BASELINE in figures}
    names = dict.fromkeys(name for figures in scenarios.values() for name in figures)
    rows = [["contestant", *scenarios]]
    rows += [
        [name, *(ratio_to(figures, name, BASELINE) if name in figures else "" for figures in scenarios.values())]
        for name in names
    ]
    return rows


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown."""
    head, *rest = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as an aligned table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def overhead_rows(results: Results) -> list[list[str]]:
    """Return the table of what a proxy adds to a request that costs nothing, its head first."""
    names = list(dict.fromkeys(key for figures in results.overhead.values() for key in figures))
    rows = [["contestant", *names]]
    rows += [
        [contestant, *(f"{figures.get(name, float('nan')):.2f}" for name in names)]
        for contestant, figures in results.overhead.items()
    ]
    return rows


def text_report(results: Results) -> str:
    """Return everything as text for a terminal."""
    parts = [f"{name}: {BY_NAME[name].title}\n{text_table(table_rows(results, name))}" for name in results.scenarios]
    parts.append("p99 to first token / that of nginx-least-conn\n" + text_table(summary_rows(results)))
    if results.overhead:
        parts.append("what a proxy adds (ms)\n" + text_table(overhead_rows(results)))
    parts += [f"missing: {name}: {why}" for name, why in results.missing.items()]
    return "\n\n".join(parts)


def markdown_report(results: Results) -> str:
    """Return everything in Markdown."""
    parts = ["### p99 time to first token, as a ratio to nginx-least-conn\n\n" + markdown_table(summary_rows(results))]
    parts += [
        f"### {name}: {BY_NAME[name].title}\n\n{markdown_table(table_rows(results, name))}"
        for name in results.scenarios
    ]
    if results.overhead:
        parts.append("### What a proxy adds\n\n" + markdown_table(overhead_rows(results)))
    parts += [f"Missing: {name}: {why}" for name, why in results.missing.items()]
    return "\n\n".join(parts) + "\n"


def plot(results: Results, path: Path) -> None:
    """Draw the p99 to first token of every contestant in every scenario, with its range over seeds, as SVG."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vllm-nginx-lb"  # the same picture for the same figures
    from matplotlib import pyplot as plt  # noqa: PLC0415 - the back end is chosen first

    scenarios = results.scenarios
    columns = min(3, max(1, len(scenarios)))
    lines = -(-len(scenarios) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    for axis in axes.flat[len(scenarios) :]:
        axis.set_visible(False)
    for axis, scenario in zip(axes.flat, scenarios, strict=False):
        figures = results.spreads(scenario)
        names = sorted(figures, key=lambda each: -figures[each]["ttft_p99"].mean)
        p99 = [figures[name]["ttft_p99"] for name in names]
        means = [each.mean / 1000 for each in p99]
        ranges = [
            [(each.mean - each.low) / 1000 for each in p99],
            [(each.high - each.mean) / 1000 for each in p99],
        ]
        colours = [
            "#2a7" if name.startswith("ours-work") else "#9cb" if name.startswith(OURS) else "#99a" for name in names
        ]
        axis.barh(names, means, xerr=ranges, color=colours, ecolor="#444")
        axis.set_xlim(0, CUT_AT * min(means))  # a worse one leaves the picture, its figure does not
        for line, mean in enumerate(means):
            at = min(mean, (CUT_AT - 0.5) * min(means))
            axis.annotate(f" {mean:.2f}", (at, line), va="center", fontsize=7)
        axis.set_title(scenario, fontsize=10)
        axis.set_xlabel("p99 time to first token, s", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
