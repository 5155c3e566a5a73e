"""Alerts and dashboard, checked by promtool and against the metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.conftest import LUA, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Stack

MONITORING = ROOT / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
CASES = ("alerts_test.yml", "alerts_days_test.yml")
TESTS = [test for name in CASES for test in yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))["tests"]]
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
# Metrics of other programs: Prometheus, its exporter for nginx, vLLM.
FOREIGN = {
    "up",
    "ALERTS",
    "nginx_connections_accepted",
    "nginx_connections_active",
    "nginx_connections_handled",
    "nginx_connections_reading",
    "nginx_connections_waiting",
    "nginx_connections_writing",
    "nginx_http_requests_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_bucket",
}
# A panel's unit has to be one of Grafana's units.
UNITS = {"none", "short", "s", "percentunit", "bytes", "cps", "cpm", "reqps", "Bps"}


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: make system-packages installs it"
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)


def names(expression: str) -> set[str]:
    """Return the metrics of an expression."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right) *\([^)]*\)', "", expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    words = re.findall(r"(?<![\w.$])[a-zA-Z_][\w:]*(?!\w|\s*\()", bare)
    return set(words) - {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "bool", "offset"}


def queries() -> dict[str, str]:
    """Return each query of the dashboard, by its panel's title and its own letter."""
    return {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}


def lua_names() -> set[str]:
    """Return the metrics that nginx has with the balancer work."""
    of_nodes = (LUA / "vllm_nginx_lb" / "node_report.lua").read_text(encoding="utf-8")
    of_requests = (LUA / "vllm_nginx_lb" / "unfit_requests.lua").read_text(encoding="utf-8")
    found = re.findall(r'\{ "\w+", "(\w+)", "(?:gauge|counter)"', of_nodes)
    found += re.findall(r'local NAME = "vllm_nginx_lb_work_(\w+)"', of_requests)
    return {f"vllm_nginx_lb_work_{name}" for name in found}


@pytest.fixture
def metrics(stack: Stack) -> str:
    """Return the script's metrics after two ticks: only the second one has the outcome of the first."""
    stack.run()
    stack.run()
    return (stack.directory / "state" / "metrics.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [("rules", "alerts.yml"), ("config", "prometheus.yml")],
    ids=lambda arguments: arguments[0],
)
def test_promtool_accepts(arguments: tuple[str, str]) -> None:
    done = promtool("check", arguments[0], MONITORING / arguments[1])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("cases", CASES)
def test_alerts_fire_when_they_should_and_only_then(cases: str) -> None:
    done = promtool("test", "rules", MONITORING / cases)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete_and_has_cases_in_which_it_fires(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["for"]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert (page, anchor) == ("docs/monitoring.md", rule["alert"].lower())
    assert f"\n### {rule['alert']}\n" in PAGE
    expected = [str(case["exp_samples"]) for test in TESTS for case in test.get("promql_expr_test", [])]
    assert any(f'"{rule["alert"]}", alertstate="firing"' in samples for samples in expected)


def test_what_the_script_shows_is_in_order_for_promtool(metrics: str) -> None:
    done = promtool("check", "metrics", text=metrics)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_alerts_and_dashboard_ask_only_for_metrics_that_there_are_and_the_page_has_all(metrics: str) -> None:
    shown = set(re.findall(r"^# TYPE (\w+) ", metrics, re.MULTILINE))
    assert len(shown) > 15
    assert len(lua_names()) == 17
    asked = set().union(*(names(rule["expr"]) for rule in RULES), *(names(each) for each in queries().values()))
    assert asked <= shown | lua_names() | FOREIGN
    assert lua_names() <= asked
    documented = set(re.findall(r"^\| `(vllm_nginx_lb_\w+)` \|", PAGE, re.MULTILINE))
    assert documented == shown | lua_names()


def test_the_names_of_an_expression_are_found() -> None:
    found = names('sum by (a) (rate(b_total{c="d e"}[5m])) > on (f) group_left () 3 * g unless vllm:h{i=~"$j"}')
    assert found == {"b_total", "g", "vllm:h"}


def test_the_dashboard_takes_its_data_from_the_chosen_source_alone() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance", "pool"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(panel["targets"])
        assert all("$instance" in each["expr"] or "vllm:" in each["expr"] for each in panel["targets"])


def test_panels_say_what_they_show_in_units_and_overlap_nowhere() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert all(target["legendFormat"] for target in panel["targets"])
