"""The alerts in the real Prometheus: none while all is well, one for a node that is down, then none again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import prometheus
import stack
import yaml

RULES = yaml.safe_load((stack.PROJECT / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))


def down(node: str) -> list[dict[str, Any]]:
    """Return the alerts which say that a node is down."""
    wanted = {"alertname": "VllmNginxLbNodeDown", "node": node}.items()
    return [alert for alert in prometheus.alerts() if wanted <= alert["labels"].items()]


def test_all_that_is_to_be_scraped_is_up() -> None:
    def targets() -> list[dict[str, Any]]:
        return list(prometheus.ask("targets", state="active")["activeTargets"])

    stack.wait_until(lambda: all(each["health"] == "up" for each in targets()), 60, "all targets are up")
    jobs = Counter(each["labels"]["job"] for each in targets())
    assert jobs == {"vllm-nginx-lb": 1, "vllm-nginx-lb-nginx": 1, "vllm-nginx-lb-work": 1, "vllm": 3}
    # By the inventory, through playbooks/targets.yml
    names = {(each["labels"].get("node"), each["labels"].get("pool")) for each in targets()} - {(None, None)}
    assert names == {(name, "llm_cluster") for name in stack.ADDRESSES if name != "node-d"}


def test_the_rules_are_loaded_and_can_be_evaluated() -> None:
    (group,) = prometheus.ask("rules")["groups"]
    assert group["name"] == "vllm-nginx-lb"
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES["groups"][0]["rules"]]
    stack.wait_until(
        lambda: all(rule["health"] == "ok" for rule in prometheus.ask("rules")["groups"][0]["rules"]),
        60,
        "all rules are evaluated",
    )


def test_nothing_is_said_of_a_site_that_is_well() -> None:
    # Alerts that are pending while the site starts end by themselves. None has ever fired.
    stack.wait_until(lambda: not prometheus.alerts(), 120, "no alert is pending")
    assert prometheus.query('last_over_time(ALERTS{alertstate="firing"}[1d])') == []


def test_a_node_that_stops_is_reported_until_it_is_back() -> None:
    stack.run("sim-b", "systemctl", "stop", "vllm-sim.service")
    try:
        (alert,) = stack.wait_until(lambda: down("node-b"), 120, "node-b is said to be down")
        assert alert["annotations"]["summary"] == "node-b of llm_cluster is down"
    finally:
        stack.run("sim-b", "systemctl", "start", "vllm-sim.service")
    stack.wait_until(lambda: not down("node-b"), 120, "node-b is no longer said to be down")
