"""The tables of a result file, for a terminal and in Markdown.

A row of a table is a list of cells; the first row is the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenario import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.results import Results
    from benchmarks.summary import Spread

    ByContestant = Mapping[str, Mapping[str, Spread]]  # then by field of Summary

BASELINE, LIMIT = "nginx-least-conn", "limit-jsq"  # contestants that others are compared with
OURS = ("ours-", "limit-")  # how the names of those begin that are no peers
# By field of Summary: the head of its column, and how a number is written.
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
    "at_home": ("at home", ".1%"),
    "halved_after": ("halved s", ".0f"),
}


def ratio_to(spreads: ByContestant, name: str, other: str) -> str:
    """Return a contestant's p99 time to first token as a ratio to another one's."""
    if not spreads[other]["ttft_p99"].mean:
        return "-"
    return f"{spreads[name]['ttft_p99'].mean / spreads[other]['ttft_p99'].mean:.2f}"


def peers_of(names: Iterable[str]) -> list[str]:
    """Return those of the contestants that are neither ours nor a limit."""
    return [name for name in names if not name.startswith(OURS)]


def best_peer(spreads: ByContestant) -> str:
    """Return the peer that has the least p99 time to first token; "" if there is none."""
    return min(peers_of(spreads), key=lambda name: spreads[name]["ttft_p99"].mean, default="")


def cell(name: str, spread: Spread | None) -> str:
    """Return a number as a table shows it: the mean, and of the p99 time to first token the range too."""
    if spread is None:
        return "-"
    text = format(spread.mean, COLUMNS[name][1])
    if name == "ttft_p99" and spread.low != spread.high:
        text += f" ({spread.low:.0f}-{spread.high:.0f})"
    return text


def scenario_rows(results: Results, scenario: str) -> list[list[str]]:
    """Return the table of a scenario, the least p99 first."""
    spreads = results.spreads(scenario)
    used = [name for name in COLUMNS if any(name in row for row in spreads.values())]
    others = {"x least_conn": BASELINE, "x best peer": best_peer(spreads), "x limit": LIMIT}
    others = {head: other for head, other in others.items() if other in spreads}
    rows = [["contestant", *(COLUMNS[name][0] for name in used), *others]]
    for name in sorted(spreads, key=lambda each: spreads[each]["ttft_p99"].mean):
        cells = [cell(column, spreads[name].get(column)) for column in used]
        rows.append([name, *cells, *(ratio_to(spreads, name, other) for other in others.values())])
    return rows


def ratio_rows(results: Results) -> list[list[str]]:
    """Return the table of each contestant's p99 in each scenario, as a ratio to that of BASELINE."""
    scenarios = {name: results.spreads(name) for name in results.scenarios}
    scenarios = {name: spreads for name, spreads in scenarios.items() if BASELINE in spreads}
    contestants = dict.fromkeys(name for spreads in scenarios.values() for name in spreads)
    rows = [["contestant", *scenarios]]
    rows += [
        [name, *(ratio_to(spreads, name, BASELINE) if name in spreads else "" for spreads in scenarios.values())]
        for name in contestants
    ]
    return rows


def overhead_rows(results: Results) -> list[list[str]]:
    """Return the table of what a proxy adds to a request that costs its node nothing; milliseconds."""
    names = list(dict.fromkeys(name for costs in results.overhead.values() for name in costs))
    rows = [["contestant", *names]]
    rows += [
        [contestant, *(f"{costs[name]:.2f}" if name in costs else "-" for name in names)]
        for contestant, costs in results.overhead.items()
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


def text_report(results: Results) -> str:
    """Return all tables as text for a terminal."""
    parts = [f"{name}: {BY_NAME[name].title}\n{text_table(scenario_rows(results, name))}" for name in results.scenarios]
    parts.append("p99 to first token / that of nginx-least-conn\n" + text_table(ratio_rows(results)))
    if results.overhead:
        parts.append("what a proxy adds (ms)\n" + text_table(overhead_rows(results)))
    parts += [f"missing: {name}: {why}" for name, why in results.missing.items()]
    return "\n\n".join(parts)


def markdown_report(results: Results) -> str:
    """Return all tables in Markdown."""
    parts = ["### p99 time to first token, as a ratio to nginx-least-conn\n\n" + markdown_table(ratio_rows(results))]
    parts += [
        f"### {name}: {BY_NAME[name].title}\n\n{markdown_table(scenario_rows(results, name))}"
        for name in results.scenarios
    ]
    if results.overhead:
        parts.append("### What a proxy adds\n\n" + markdown_table(overhead_rows(results)))
    parts += [f"Missing: {name}: {why}" for name, why in results.missing.items()]
    return "\n\n".join(parts) + "\n"
