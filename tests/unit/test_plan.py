"""The validation of a plan by apply: an attacker can do no more with it than change weights."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from tests.unit.samples import config, good
from vllm_lb.decide import decide
from vllm_lb.errors import FailureError
from vllm_lb.plan import Plan, check_plan

CONFIG = config("a", "b")


def honest() -> dict[str, Any]:
    """Return a plan as collect writes it."""
    samples = {"a": good("127.0.0.1"), "b": good("127.0.0.2")}
    pools, _ = decide(CONFIG, samples, {}, set(), 100.0)
    plan = Plan(version=1, decided_at="2026-01-01T00:00:00.000+00:00", pools=pools)
    return dict(json.loads(json.dumps(dataclasses.asdict(plan))))


def test_an_honest_plan_passes() -> None:
    assert [node.weight for node in check_plan(honest(), CONFIG).pools[0].nodes] == [100, 100]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("upstream_file",), "/etc/passwd", "unknown key"),
        (("version",), 2, "plan.version: 2"),
        (("decided_at",), "now\nthen", "plan.decided_at"),
        (("pools",), [], "its pools are not the configured ones"),
        (("pools", 0, "name"), "other", "its pools are not the configured ones"),
        (("pools", 0, "nodes"), [], "its nodes are not the configured ones"),
        (("pools", 0, "nodes", 0, "name"), "b", "its nodes are not the configured ones"),
        (("pools", 0, "nodes", 0, "name"), "a; }", "plan.pools[0].nodes[0].name"),
        (("pools", 0, "nodes", 0, "address"), "127.0.0.9", "node a: address 127.0.0.9 instead of 127.0.0.1"),
        (("pools", 0, "nodes", 0, "address"), "unix:/run/docker.sock", "expected an IP address"),
        (("pools", 0, "nodes", 0, "address"), None, "node a: a weight without an address"),
        (("pools", 0, "nodes", 0, "weight"), 101, "expected a number from 0 to 100"),
        (("pools", 0, "nodes", 0, "weight"), "1 backup", "expected a number from 0 to 100"),
        (("pools", 0, "nodes", 0, "weight"), True, "expected a number from 0 to 100"),
        (("pools", 0, "nodes", 0, "reason"), "x\n<0>forged", "plan.pools[0].nodes[0].reason"),
        (("pools", 0, "nodes", 0, "port"), 22, "unknown key"),
        (("pools", 0, "nodes", 0, "state"), "root", "expected one of up, down, unknown, drained"),
    ],
)
def test_a_dishonest_plan_is_refused(path: tuple[str | int, ...], value: object, problem: str) -> None:
    raw: Any = honest()
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(FailureError) as failure:
        check_plan(raw, CONFIG)
    assert str(failure.value).startswith("plan refused: ")
    assert problem in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


def test_a_plan_that_would_serve_nobody_is_refused() -> None:
    raw = honest()
    for node in raw["pools"][0]["nodes"]:
        node["weight"] = 0
    with pytest.raises(FailureError, match="no node would serve"):
        check_plan(raw, CONFIG)


def test_one_server_under_two_names_is_refused() -> None:
    names = [{"name": "a", "host": "one.example"}, {"name": "b", "host": "two.example"}]
    raw = copy.deepcopy(honest())
    raw["pools"][0]["nodes"][1]["address"] = "127.0.0.1"
    with pytest.raises(FailureError, match=r"address 127\.0\.0\.1 twice"):
        check_plan(raw, config(pool={"nodes": names}))


@pytest.mark.parametrize("raw", [None, [], "x", 3, {"version": float("nan")}])
def test_no_plan_at_all(raw: object) -> None:
    with pytest.raises(FailureError, match="plan refused"):
        check_plan(raw, CONFIG)
