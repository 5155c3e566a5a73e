"""After node-d was added to the inventory and the site play ran."""

from __future__ import annotations

import stack


def test_the_new_node_answers_requests() -> None:
    assert set(stack.nodes()) == {"node-a", "node-b", "node-c", "node-d"}
    stack.wait_until(lambda: "node-d" in stack.shares(40), within_seconds=60, what="node-d answers a request")
