"""After the load that did not pass the ingress has ended."""

from __future__ import annotations

import stack


def test_the_weight_returns() -> None:
    stack.wait_until(
        lambda: set(stack.weights().values()) == {100}, within_seconds=90, what="all nodes weigh 100 again"
    )
    stack.wait_until(
        lambda: stack.generation() == stack.status()["generation"], within_seconds=30, what="nginx has these weights"
    )
    assert "node-a" in stack.shares(30)
