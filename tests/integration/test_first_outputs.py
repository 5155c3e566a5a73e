"""How long first outputs take, as the balancer `work` predicts and sees it, of a simulated node of known speed."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import fetch, wait_for
from tests.integration.test_work_balancer import POOL, work
from tests.soak.simulated_site import start_node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.test_work_balancer import WorkStack

__all__ = ["work"]  # a fixture
SPEED = 200_000  # bytes per second: the simulator has four in a token, and a token takes 0.02 ms
ENGINE = ("--prefill-token-ms=0.02", "--step-ms=1")
DEFAULT_SPEED = SPEED // 20
SMALL, LARGE = 1000, 60_000  # bytes


def begin(it: WorkStack, size: int) -> None:
    """Stream an answer to a prompt that no other prompt begins like."""
    prompt = f"{secrets.token_hex()} ".ljust(size, "x")
    body = {"model": "sim", "prompt": prompt, "max_tokens": 1, "stream": True}
    assert it.post(body=json.dumps(body).encode()).status == 200


def measured(it: WorkStack) -> dict[str, float]:
    """Return nginx's metrics of the node, by the end of their names."""
    families = text_string_to_metric_families(fetch(it.status_port, "/work/metrics"))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("node") == "node-a"]
    return {sample.name.removeprefix("vllm_nginx_lb_work_"): sample.value for sample in samples}


def is_about(value: float, wanted: float) -> bool:
    """Tell whether a value is at least half of another, and at most twice that."""
    return wanted / 2 <= value <= wanted * 2


def is_predicted(it: WorkStack) -> bool:
    """Ask twice, and tell whether nginx knows about how fast the node is, and how long these first outputs took."""
    before = measured(it)
    begin(it, LARGE)
    begin(it, SMALL)
    after = measured(it)
    predicted, seen, count = (
        after[name] - before[name]
        for name in ("first_output_predicted_seconds_total", "first_output_seconds_total", "first_outputs_total")
    )
    assert count == 2
    return is_about(predicted, seen) and is_about(after["prefill_bytes_per_second"], SPEED)


def test_nginx_learns_to_predict_first_outputs(work: WorkStack, tmp_path: Path) -> None:
    work.settings = {"prefill_bytes_per_second": DEFAULT_SPEED}
    work.restart()
    with start_node("node-a", "127.0.0.5", ENGINE, tmp_path / "node-a.log") as node:
        nodes = [{"name": node.name, "address": node.host, "port": node.port, "weight": 100}]
        work.write(json.dumps({"version": 1, "generation": "0a", "pools": [{"name": POOL, "nodes": nodes}]}))
        work.await_generation("0a")
        assert "prefill_bytes_per_second" not in measured(work)
        begin(work, LARGE)
        assert measured(work)["first_output_predicted_seconds_total"] == pytest.approx(LARGE / DEFAULT_SPEED, rel=0.01)
        wait_for(lambda: is_predicted(work), seconds=60)
