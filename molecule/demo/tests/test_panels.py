"""Every query of the dashboard has a result in the real Prometheus while the site has load."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import prometheus
import pytest
import stack
from clients import keep_asking

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD = json.loads((stack.PROJECT / "monitoring" / "grafana-dashboard.json").read_text(encoding="utf-8"))
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"}
# The values that Grafana fills in. A variable with everything selected is its allValue, or all values. The interval is
# at least four scrapes.
FILLED = {"job": "vllm-nginx-lb", "__rate_interval": "1m"} | {
    name: each.get("allValue", ".*") for name, each in VARIABLES.items() if each["includeAll"]
}


def filled(expression: str) -> str:
    """Return a query with its variables filled in."""
    return re.sub(r"\$(\w+)", lambda found: FILLED[found[1]], expression)


@pytest.fixture(scope="module", autouse=True)
def _load() -> Iterator[None]:
    """Send requests, short ones and streams, for as long as the tests run."""
    with keep_asking(streams=8):
        yield


@pytest.mark.parametrize("name", QUERIES)
def test_panel_has_data(name: str) -> None:
    expression = filled(QUERIES[name])
    found = stack.wait_until(
        lambda: [each for each in prometheus.query(expression) if not math.isnan(each[1])], 90, f"data of {expression}"
    )
    assert all(math.isfinite(value) for _, value in found)


@pytest.mark.parametrize("variable", VARIABLES)
def test_variable_has_what_can_be_chosen(variable: str) -> None:
    query: Any = VARIABLES[variable]["definition"]
    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
    expected = {"job": "vllm-nginx-lb", "instance": stack.INGRESS["container_ip"], "pool": "llm_cluster"}
    assert prometheus.ask(f"label/{label}/values", **{"match[]": filled(series)}) == [expected[variable]]


def test_the_timeline_shows_a_node_that_is_drained() -> None:
    expression = filled(QUERIES["State of each node A"])

    def state() -> dict[str, float]:
        return {labels["node"]: value for labels, value in prometheus.query(expression)}

    stack.wait_until(lambda: state() == {"node-a": 0, "node-b": 0, "node-c": 0}, 60, "all nodes are up")
    stack.on_ingress("vllm-nginx-lb", "drain", "node-c")
    stack.wait_until(lambda: state() == {"node-a": 0, "node-b": 0, "node-c": 1}, 60, "node-c is drained")
    stack.on_ingress("vllm-nginx-lb", "undrain", "node-c")
    stack.wait_until(lambda: state() == {"node-a": 0, "node-b": 0, "node-c": 0}, 60, "all nodes are up again")
