"""After node-a got load that did not pass the ingress."""

from __future__ import annotations

from datetime import datetime

import stack


def load_started_at() -> float:
    """Return when the load started, in Unix seconds."""
    shown = stack.run("sim-d", "systemctl", "show", "--timestamp=unix", "--property=ActiveEnterTimestamp", "overload")
    return float(shown.strip().partition("@")[2])


def test_the_weight_falls_within_two_ticks_and_goes_live() -> None:
    before = stack.status("/run/status-before-overload.json")
    assert {node["weight"] for pool in before["pools"] for node in pool["nodes"]} == {100}

    def lowered() -> float | None:
        status = stack.status()
        weights = {node["name"]: node["weight"] for pool in status["pools"] for node in pool["nodes"]}
        decided_at = datetime.fromisoformat(status["decided_at"]).timestamp()
        return decided_at if weights["node-a"] < weights["node-b"] else None

    decided_at = stack.wait_until(lowered, within_seconds=60, what="node-a weighs less than the others")

    assert decided_at
    # One second, because systemd tells the start of the load in whole seconds.
    assert decided_at - load_started_at() < 2 * stack.INTERVAL_SECONDS + 1
    assert stack.wait_until(
        lambda: stack.generation() != before["generation"], within_seconds=10, what="nginx has the new weights"
    )


def test_the_journal_has_the_change_in_fields() -> None:
    # A request that lowers the weight in one tick may have ended in the next: any lower weight proves the change.
    entries = stack.journal("VLLM_NGINX_LB_NODE=node-a", "VLLM_NGINX_LB_PREVIOUS_WEIGHT=100")
    assert entries, stack.journal()
    for entry in entries:
        assert entry["SYSLOG_IDENTIFIER"] == "vllm-nginx-lb"
        assert entry["PRIORITY"] == "5"
        assert (entry["VLLM_NGINX_LB_POOL"], entry["VLLM_NGINX_LB_STATE"]) == ("llm_cluster", "up")
        weight = entry["VLLM_NGINX_LB_WEIGHT"]
        assert entry["MESSAGE"].startswith(f"llm_cluster/node-a: weight 100 -> {weight}: ")
    assert any(
        entry["VLLM_NGINX_LB_OUTCOME"] in ("reloaded", "published")
        for entry in stack.journal("PRIORITY=5")
        if "VLLM_NGINX_LB_OUTCOME" in entry
    )


def test_the_history_tells_what_moved_its_weight() -> None:
    said = stack.on_ingress("vllm-nginx-lb", "explain", "node-a")
    assert "weight 100 -> " in said
    assert "since the tick before: " in said
    assert "running" in said


def test_the_overloaded_node_gets_less_than_half_of_what_the_others_get() -> None:
    # Waiting requests and a full batch are one level each.
    stack.wait_until(lambda: stack.weights()["node-a"] <= 30, within_seconds=60, what="node-a two levels down")

    answered = stack.shares(200)

    assert answered["node-a"] < min(answered["node-b"], answered["node-c"]) / 2, answered
    assert answered["node-a"] > 0, "a trickle must reach the node, or nobody sees that it recovered"
