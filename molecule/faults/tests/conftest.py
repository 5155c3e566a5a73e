"""Around each test: clients that never stop asking, an ear on the journal, and a tick that succeeds at the end.

The timer stands still, so that a tick begins when a test says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import ticks
from clients import Clients, keep_asking

from tests.faults import heard, told

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["heard", "told"]  # fixtures


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Stop the timer, which plays and a boot start, and leave it as the role does."""
    ticks.stop_timer()
    yield
    ticks.start_timer()


@pytest.fixture(autouse=True)
def clients(quiet: None, told: None, heard: list[str]) -> Iterator[Clients]:  # noqa: ARG001 - for what they do
    """Keep asking during the test, and hear all that the service says; then all must be well again."""
    began = time.time()
    with keep_asking() as them:
        try:
            yield them
        finally:
            heard += ticks.journal(began)
    assert ticks.tick(), "the test left something behind: " + "\n".join(ticks.journal(began))
    ticks.await_live()
