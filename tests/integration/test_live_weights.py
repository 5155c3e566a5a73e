"""What is live and what is decided, wherever the two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_lb import __version__

if TYPE_CHECKING:
    from tests.integration.conftest import Stack

DECIDED = {"node-a": 10, "node-b": 100, "node-c": 100}


def decided_not_live(stack: Stack, outcome: str) -> Any:
    """Return the live weights of a tick or a rollback that ended so; the decision is DECIDED."""
    status = stack.status()
    assert (status["outcome"], stack.weights()) == (outcome, DECIDED)
    return status["live_weights"]


def test_what_was_published_does_not_differ(stack: Stack) -> None:
    for outcome in ("reloaded", "unchanged"):
        stack.run()
        status = stack.status()
        assert (status["outcome"], status["live_weights"], status["package_version"]) == (outcome, {}, __version__)


def test_a_change_that_waits_is_not_live(stack: Stack) -> None:
    stack.run()
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert decided_not_live(stack, "deferred") == {"llm_cluster": {"node-a": 100}}


def test_after_a_rollback_the_former_weight_is_live(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert stack.script("rollback").returncode == 0
    assert decided_not_live(stack, "rolled_back") == {"llm_cluster": {"node-a": 100}}
    assert stack.script("rollback").returncode == 0
    assert decided_not_live(stack, "rolled_back") == {}


def test_a_rollback_can_bring_a_removed_node_back(stack: Stack) -> None:
    stack.run()
    removed = stack.config["pools"][0]["nodes"].pop()["name"]
    stack.run()
    assert stack.status()["live_weights"] == {}
    assert stack.script("rollback").returncode == 0
    assert stack.status()["live_weights"] == {"llm_cluster": {removed: 100}}


def test_a_refused_change_is_not_live(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    stack.write_nginx("broken;")
    stack.run(expect=1)
    assert decided_not_live(stack, "failed") == {"llm_cluster": {"node-a": 100}}


def test_what_a_silent_nginx_serves_is_not_known(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    stack.stop()
    stack.run(expect=1)
    assert decided_not_live(stack, "failed") is None


def test_metrics_and_explain_tell_the_live_weight_from_the_decided_one(stack: Stack) -> None:
    stack.run()
    assert "nginx serves" not in stack.script("explain", "node-a").stdout
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600
    stack.nodes[0].load["kv"] = 0.95
    for _ in range(2):  # metrics tell of the tick before
        stack.run()
    text = (stack.directory / "state" / "metrics.prom").read_text()
    for line in (
        'vllm_nginx_lb_node_weight{node="node-a",pool="llm_cluster"} 10.0',
        'vllm_nginx_lb_node_live_weight{node="node-a",pool="llm_cluster"} 100.0',
        'vllm_nginx_lb_node_live_weight{node="node-b",pool="llm_cluster"} 100.0',
        'vllm_nginx_lb_pool_nodes_not_live{pool="llm_cluster"} 1.0',
    ):
        assert f"{line}\n" in text
    said = stack.script("explain", "node-a").stdout
    assert "decided, not live: deferred: the last reload was " in said
    assert said.splitlines()[-1].startswith(
        "  nginx serves it with weight 100: decided is 10, which is not live (deferred: the last reload was "
    )
    assert "nginx serves" not in stack.script("explain", "node-b").stdout


def test_what_is_not_known_has_no_metric(stack: Stack) -> None:
    stack.run()
    stack.stop()
    for _ in range(2):
        stack.run(expect=1)
    text = (stack.directory / "state" / "metrics.prom").read_text()
    assert "vllm_nginx_lb_node_weight{" in text
    assert "live_weight" not in text
    assert "not_live" not in text
    last = stack.script("explain", "node-a").stdout.splitlines()[-1]
    assert last.startswith("  it is not known which weight nginx serves (failed: nginx does not answer")


def test_explain_names_a_removed_node_that_nginx_serves(stack: Stack) -> None:
    stack.run()
    removed = stack.config["pools"][0]["nodes"].pop()["name"]
    stack.run()
    assert "nginx serves" not in stack.script("explain", removed).stdout
    assert stack.script("rollback").returncode == 0
    assert stack.script("explain", removed).stdout.splitlines()[-1] == (
        "  nginx serves it with weight 100: not configured any more (rolled_back: rolled back by the operator)"
    )
