"""After playbooks/rollback.yml went back one upstream file."""

from __future__ import annotations

import stack


def test_the_former_upstream_is_live_and_nothing_will_undo_it() -> None:
    live = stack.generation()
    assert f'"{live}"' in stack.published()
    status = stack.status()
    assert (status["outcome"], status["error"]) == ("rolled_back", "rolled back by the operator")
    assert status["generation"] == live
    assert stack.on_ingress("systemctl", "is-active", "vllm-nginx-lb.timer", check=False).strip() == "inactive"
    assert stack.shares(20)
