"""After node-b was removed from the inventory and the site play ran."""

from __future__ import annotations

import stack


def test_the_removed_node_is_gone() -> None:
    assert set(stack.nodes()) == {"node-a", "node-c", "node-d"}
    assert stack.ADDRESSES["node-b"] not in stack.published()
    assert set(stack.shares(60)) <= {"node-a", "node-c", "node-d"}
