"""Links of the documentation lead to files and headings that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from vllm_lb import __version__

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "roles/*/README.md", "simulator/README.md") for page in ROOT.glob(pattern)
)


def prose(page: Path) -> str:
    """Return a page without its code blocks, which have no links."""
    return re.sub(r"^```[\s\S]*?^```$|^ {4}\S.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return what GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)


def links(page: Path) -> list[str]:
    """Return the links of a page that lead into this repository."""
    text = prose(page)
    found = re.findall(r"\]\(\s*([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found() -> None:
    assert "docs/operations.md#day-2" in links(ROOT / "README.md")
    assert "docs/images/status-wide.png" in links(ROOT / "README.md")
    assert sum(len(links(page)) for page in PAGES) > 40


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_the_changelog_begins_with_the_version_of_the_script() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    newest = re.fullmatch(r"(\d+\.\d+\.\d+) (?:\(not released yet\)|- \d{4}-\d\d-\d\d)", headings[0])
    assert newest
    assert newest[1] == __version__


def test_the_page_of_real_engines_names_all_of_their_tests() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "vllm").glob("test_*.py"))
    page = (ROOT / "docs" / "real_engines.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"::(test_\w+)`", page)) == sorted(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
