"""The compact tables of a result file: a row a scenario, ours beside nginx's `least_conn`, the best peer and the limit.

What is lost stands beside what is won: a number of ours that is more than LOST times a rival's is bold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenario import GROUPS
from benchmarks.tables import BASELINE, best_peer, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Results
    from benchmarks.tables import ByContestant

OURS, EXACT = "ours-work", "limit-exact"
LOST = 1.03
HEAD = (
    *("scenario", "ours p50", "p90", "p99", "least_conn p99", "best peer", "its p50", "p90", "p99", "exact p99"),
    *("ours / least_conn", "ours / best peer", "ours / exact", "at home"),
)


def compact_report(results: Results) -> str:
    """Return, in Markdown, the table of each group of scenarios in which OURS ran, of seeds that all ran with."""
    results = results.of_common_seeds()
    tables = {group: compact_rows(results, scenarios) for group, scenarios in GROUPS.items()}
    return "\n".join(f"### {group}\n\n{markdown_table(rows)}\n" for group, rows in tables.items() if len(rows) > 1)


def compact_rows(results: Results, scenarios: Sequence[str]) -> list[list[str]]:
    """Return the table of those of the scenarios in which OURS ran, after its head.

    Times are milliseconds to the first token, means over seeds. "-" stands for what did not run. The best peer is the
    one with the least p99.
    """
    spreads = {name: results.spreads(name) for name in scenarios}
    return [list(HEAD), *(row_of(name, found) for name, found in spreads.items() if OURS in found)]


def row_of(scenario: str, spreads: ByContestant) -> list[str]:
    """Return the row of a scenario; p50 and p90 of ours are bold if the best peer's are better, as its p99 would be."""
    peer = best_peer(spreads)
    (p50, p90, p99), best = times_of(spreads, OURS), times_of(spreads, peer)
    baseline, exact = times_of(spreads, BASELINE)[2], times_of(spreads, EXACT)[2]
    home = spreads[OURS].get("at_home")
    return [
        scenario,
        bold_if(is_lost(p50, best[0]), milliseconds(p50)),
        bold_if(is_lost(p90, best[1]), milliseconds(p90)),
        milliseconds(p99),
        milliseconds(baseline),
        peer or "-",
        *(milliseconds(each) for each in best),
        milliseconds(exact),
        bold_if(is_lost(p99, baseline), ratio(p99, baseline)),
        bold_if(is_lost(p99, best[2]), ratio(p99, best[2])),
        ratio(p99, exact),
        f"{home.mean:.1%}" if home else "-",
    ]


def times_of(spreads: ByContestant, name: str) -> tuple[float, float, float]:
    """Return a contestant's p50, p90 and p99; 0 if it did not run."""
    found = spreads.get(name, {})
    p50, p90, p99 = (found[key].mean if key in found else 0.0 for key in ("ttft_p50", "ttft_p90", "ttft_p99"))
    return p50, p90, p99


def is_lost(own: float, rivals: float) -> bool:
    """Tell whether a time of ours is clearly worse than a rival's; False if there is no rival."""
    return rivals > 0 and own > LOST * rivals


def bold_if(condition: bool, text: str) -> str:  # noqa: FBT001 - reads as a sentence
    """Return a cell, bold or not."""
    return f"**{text}**" if condition else text


def milliseconds(time: float) -> str:
    """Return a time as a cell."""
    return f"{time:.0f}" if time else "-"


def ratio(own: float, others: float) -> str:
    """Return a ratio as a cell."""
    if not others:
        return "-"
    return f"{own / others:.2f}" if own > others / 10 else f"{own / others:.3f}"
