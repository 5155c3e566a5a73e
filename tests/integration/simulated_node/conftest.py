"""A simulated node that the tests of one module share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.simulated_node.node_process import SimulatedNode, start_node, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared_node() -> Iterator[SimulatedNode]:
    with start_node("--name", "node-a") as node:
        yield node


@pytest.fixture
def node(shared_node: SimulatedNode) -> Iterator[SimulatedNode]:
    yield shared_node
    shared_node.clear_faults()
    shared_node.control(sleep=0, speed=1)
    wait_until(lambda: shared_node.running() == [0], "the requests of a test are gone")
