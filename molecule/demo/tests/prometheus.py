"""The demo's Prometheus, as tests ask it."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

import stack
import yaml

_HOSTS = yaml.safe_load((stack.SCENARIO / "inventory" / "monitoring.yml").read_text(encoding="utf-8"))
ADDRESS = _HOSTS["monitoring"]["hosts"]["prometheus-1"]["container_ip"]
STATUS_URL = f"http://{stack.INGRESS['container_ip']}:18091"


def fetch(url: str) -> str:
    """Return what is answered at an address."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the addresses are the demo's own
        return str(answer.read().decode())


def ask(path: str, **parameters: str) -> Any:
    """Return the data of an answer of Prometheus' API."""
    url = f"http://{ADDRESS}:9090/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    answer = json.loads(fetch(url))
    assert answer["status"] == "success", answer
    return answer["data"]


def query(expression: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and values that an expression has now."""
    return [(each["metric"], float(each["value"][1])) for each in ask("query", query=expression)["result"]]


def alerts() -> list[dict[str, Any]]:
    """Return the alerts that are pending or firing."""
    return list(ask("alerts")["alerts"])
