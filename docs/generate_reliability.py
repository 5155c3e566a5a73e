#!/usr/bin/env python3
"""Write the table of docs/reliability.md from the tests that cause the faults.

python3 docs/generate_reliability.py           writes the page
python3 docs/generate_reliability.py --check   exits 1 when the page is out of date, and changes nothing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TESTS = [ROOT / "tests", ROOT / "molecule" / "faults" / "tests"]
BEGIN, END = "<!-- made by docs/generate_reliability.py: begin -->\n", "<!-- end -->\n"


class Collector:
    """A pytest plugin that collects the tests that cause a fault."""

    def __init__(self) -> None:
        """Start without any row."""
        self.rows: dict[int, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Make a row of each marked test; its parameter sets share one if the marker is on the test itself."""
        for item in items:
            marker = item.get_closest_marker("fault")
            if marker is None:
                continue
            group, fault = marker.args
            whole_test = marker in getattr(getattr(item, "obj", None), "pytestmark", [])
            name = item.name.partition("[")[0] if whole_test else item.name
            proof = f"`{item.path.relative_to(ROOT)}::{name}`"
            cells = (fault, marker.kwargs["sees"], marker.kwargs["keeps"], proof)
            row = "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"  # a | alone would end a cell
            rows = self.rows.setdefault(group, [])
            if row not in rows:
                rows.append(row)


def table() -> str:
    """Return the tables, one section for each group of faults."""
    sys.path.insert(0, str(ROOT))
    from tests.faults import GROUPS  # noqa: PLC0415 - importable only now

    collector = Collector()
    quiet = ["--collect-only", "-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    code = pytest.main([*quiet, *(str(path) for path in TESTS)], plugins=[collector])
    if code:
        sys.exit(f"docs/generate_reliability.py: pytest cannot collect the tests ({code}): pytest --collect-only")
    head = "| what happens | what the operator reads | what keeps running | proven by |\n| --- | --- | --- | --- |\n"
    sections = [
        f"## {title}\n\n{head}" + "\n".join(collector.rows[group]) + "\n"
        for group, title in GROUPS.items()
        if group in collector.rows
    ]
    return "\n".join(sections)


def main() -> None:
    """Write the page, or with --check compare it and exit with 1 if it is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when the page is out of date")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    after = f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
    if check and after != before:
        sys.exit("docs/reliability.md is out of date: run python3 docs/generate_reliability.py")
    if not check:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
