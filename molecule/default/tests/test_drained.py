"""After playbooks/drain.yml took node-a out."""

from __future__ import annotations

import stack


def test_the_drained_node_gets_no_request() -> None:
    assert stack.nodes()["node-a"]["state"] == "drained"
    assert set(stack.shares(40)) == {"node-c", "node-d"}
