"""The result file of a benchmark: its runs, and the conditions under which they were made."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.conditions import conditions
from benchmarks.scenario import SCENARIOS
from benchmarks.summary import Spread, Summary, spreads

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

FOLDER = Path(__file__).parent / "results"  # not in git


@dataclass
class Results:
    """All runs of a benchmark.

    Attributes:
        conditions: see conditions.py; two files are comparable if theirs are equal.
        rows: one a run: contestant, scenario, seed, and the fields of Summary.
        missing: contestants that could not run, and why.
        overhead: by contestant, what overhead.measure() returned.
    """

    conditions: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    overhead: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, contestant: str, scenario: str, seed: int, summary: Summary) -> None:
        """Add a run."""
        self.rows.append({"contestant": contestant, "scenario": scenario, "seed": seed, **asdict(summary)})

    def has(self, contestant: str, scenario: str, seed: int) -> bool:
        """Tell whether a run is there."""
        return any((r["contestant"], r["scenario"], r["seed"]) == (contestant, scenario, seed) for r in self.rows)

    def of_common_seeds(self) -> Self:
        """Return the results without the runs of seeds that not every contestant of the scenario has run with.

        So a series that was ended early compares equal requests.
        """
        contestants: dict[str, set[str]] = {}
        runs: dict[tuple[str, int], set[str]] = {}
        for row in self.rows:
            contestants.setdefault(row["scenario"], set()).add(row["contestant"])
            runs.setdefault((row["scenario"], row["seed"]), set()).add(row["contestant"])
        rows = [r for r in self.rows if runs[r["scenario"], r["seed"]] == contestants[r["scenario"]]]
        return replace(self, rows=rows)

    def sort(self, contestants: Sequence[str]) -> None:
        """Sort the runs by scenario, by contestant as given here (unknown ones last), and by seed."""
        scenarios = {each.name: place for place, each in enumerate(SCENARIOS)}
        places = {name: place for place, name in enumerate(contestants)}
        last = len(places)
        self.rows.sort(key=lambda row: (scenarios[row["scenario"]], places.get(row["contestant"], last), row["seed"]))

    def spreads(self, scenario: str) -> dict[str, dict[str, Spread]]:
        """Return, by contestant in the order of their runs, the spread of each number in a scenario."""
        found: dict[str, list[Summary]] = {}
        for row in self.rows:
            if row["scenario"] == scenario:
                values = {name: row.get(name) for name in Summary.__slots__}
                found.setdefault(row["contestant"], []).append(Summary(**values))  # type: ignore[arg-type]
        return {name: spreads(runs) for name, runs in found.items()}

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios that have rows, in the order of SCENARIOS."""
        there = {row["scenario"] for row in self.rows}
        return [each.name for each in SCENARIOS if each.name in there]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that save() wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def begin(options: argparse.Namespace) -> Results:
    """Return the results that a series adds to: with --continue those in the file, else none.

    Exits if those in the file were made under other conditions.
    """
    now = conditions(options)
    if not options.resume or not options.results.exists():
        return Results(now)
    results = Results.load(options.results)
    changed = [name for name in now if now[name] != results.conditions.get(name)]
    if changed:
        sys.exit(f"{options.results}: made under other conditions ({', '.join(changed)}): run without --continue")
    return results
