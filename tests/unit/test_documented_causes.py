"""docs/monitoring.md lists exactly the codes that the package has."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from vllm_lb import causes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
# The heading of the page under which the codes of a class stand.
HEADINGS = {
    "NodeCause": "Why a node has its state and weight",
    "ScrapeCause": "Why a scrape gave no reading, or a part of one",
    "HeldCause": "Why a pool is held",
    "DeferredCause": "Why a change of weights waits",
    "FailureCause": "Why a tick or a command failed",
}


def codes_of_the_page(heading: str) -> list[str]:
    """Return the first column of the table below a heading."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n### {heading}\n")
    return re.findall(r"^\| `([a-z_]+)` \|", re.split(r"^#", text, flags=re.MULTILINE)[0], re.MULTILINE)


def test_every_kind_of_code_has_a_table() -> None:
    kinds = {name for name, each in vars(causes).items() if isinstance(each, type) and issubclass(each, StrEnum)}
    assert kinds - {"StrEnum"} == HEADINGS.keys()


@pytest.mark.parametrize("kind", HEADINGS)
def test_a_table_has_the_codes_of_the_package_in_its_order(kind: str) -> None:
    assert codes_of_the_page(HEADINGS[kind]) == [str(code) for code in getattr(causes, kind)]
