"""Faults that tests cause, and the messages that an operator gets.

A test marked `@pytest.mark.fault(group, fault, sees=..., keeps=...)` becomes a row of
docs/reliability.md. The test fails unless a line with the words of `sees` was heard, so the page has only messages that
the tests saw. In `sees`, "…" stands for any words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = {
    1: "A tick is killed",
    2: "Disks and directories",
    3: "nginx refuses the configuration",
    4: "A reload does not take",
    5: "nginx is away",
    6: "Two at once, or one that hangs",
    7: "Nodes",
    8: "Names",
    9: "Addresses and size",
    10: "Damaged state, the clock, a reboot",
    11: "An edit by hand",
    12: "Rollback",
    13: "Long streams",
    14: "Attackers",
    15: "A play is interrupted, or nginx does not take its configuration",
}


def says(line: str, sees: str) -> bool:
    """Tell whether a line has the words of `sees`, in order."""
    position = 0
    for words in sees.split("…"):
        position = line.find(words, position)
        if position < 0:
            return False
        position += len(words)
    return True


@pytest.fixture
def heard() -> list[str]:
    """Collect the messages to the operator during the test, line by line."""
    return []


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, heard: list[str]) -> Iterator[None]:
    """Fail a test of a fault if no message has the words of its `sees`."""
    marker = request.node.get_closest_marker("fault")
    yield
    if marker:
        sees = marker.kwargs["sees"]
        lines = [line for text in heard for line in text.splitlines()]
        assert any(says(line, sees) for line in lines), f"nobody said {sees!r}, but: {lines}"
