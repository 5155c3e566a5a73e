"""Fixtures around each test: clients that send requests all the time, a reader of the journal, a good tick at the end.

The timer is stopped, so that a tick begins only when a test starts it.
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
def clients(quiet: None, told: None, heard: list[str]) -> Iterator[Clients]:  # noqa: ARG001 - for their effects
    """Send requests during the test and read the service's journal. At the end every node must be well again."""
    began = time.time()
    with keep_asking() as them:
        try:
            yield them
        finally:
            heard += ticks.journal(began)
    assert ticks.tick(), "the test left something behind: " + "\n".join(ticks.journal(began))
    ticks.await_live()
