"""After playbooks/undrain.yml put node-a back."""

from __future__ import annotations

import stack


def test_the_node_gets_requests_again() -> None:
    stack.wait_until(lambda: "node-a" in stack.shares(40), within_seconds=60, what="node-a answers a request")
    assert stack.nodes()["node-a"]["state"] == "up"
