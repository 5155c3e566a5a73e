"""What the playbooks say of a change: the filters of roles/vllm_nginx_lb/filter_plugins/config_changes.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "roles" / "vllm_nginx_lb" / "filter_plugins" / "config_changes.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_changes", PLUGIN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILTERS = load()
NODES: list[dict[str, Any]] = [
    {"name": "node-a", "host": "192.0.2.1", "capacity": 1.0},
    {"name": "node-b", "host": "192.0.2.2", "capacity": 1.0},
]


def config(*nodes: dict[str, Any], pool: str = "llm_cluster", **settings: Any) -> str:
    """Return a config.yml as the role writes it."""
    pools = [{"name": pool, "policy": "capacity", "nodes": list(nodes)}]
    return "# Ansible managed\n" + json.dumps({"nginx": {"balancer": "work"}, "pools": pools, **settings}, indent=4)


@pytest.mark.parametrize(
    ("former", "wanted", "words", "others"),
    [
        (config(*NODES), config(*NODES), [], []),
        (config(*NODES), config(NODES[0]), ["removed node-b"], []),
        (config(NODES[1]), config(*NODES), ["added node-a"], []),
        (config(*NODES), config(NODES[0], {**NODES[1], "drain": True}), ["changed node-b"], []),
        (
            config(*NODES),
            config({**NODES[0], "capacity": 0.5}, {"name": "node-c", "host": "192.0.2.3"}),
            ["added node-c", "removed node-b", "changed node-a"],
            [],
        ),
        (config(*NODES), config(*NODES, nginx={"balancer": "upstream"}), [], ["nginx.balancer"]),
        (
            config(*NODES),
            config(*({**node, "scheme": "https"} for node in NODES)),
            ["changed node-a, node-b"],
            ["pools.llm_cluster.schemes"],
        ),
        (
            config(*NODES),
            config(*NODES, pool="batch"),
            ["changed node-a, node-b"],
            [f"pools.{pool}.{key}" for pool in ("batch", "llm_cluster") for key in ("name", "policy", "schemes")],
        ),
        (
            config(NODES[0]),
            config(*NODES, *({"name": f"node-{number}"} for number in range(9))),
            ["added node-0, node-1, node-2, node-3, node-4 and 5 more"],
            [],
        ),
    ],
    ids=["nothing", "removed", "added", "drained", "all three", "setting", "scheme", "pool", "many"],
)
def test_a_change_is_told(former: str, wanted: str, words: list[str], others: list[str]) -> None:
    changes = FILTERS.vllm_nginx_lb_changes(former, wanted)
    assert FILTERS.vllm_nginx_lb_told_changes(changes) == words
    assert changes["others"] == others


@pytest.mark.parametrize(
    "former",
    [
        *("", "not: [ours", "- a list", "[]", "null", "[" * 100_000),
        *(
            '{"pools": null}',
            '{"pools": [1]}',
            '{"pools": [{"nodes": [{}]}]}',
            '{"pools": [{"name": "p", "nodes": null}]}',
        ),
        '{"pools": [{"name": "p", "nodes": [{"name": "node-a", "scheme": []}]}]}',
    ],
    ids=lambda former: former[:60],
)
def test_all_of_a_first_config_is_new(former: str) -> None:
    changes = FILTERS.vllm_nginx_lb_changes(former, config(*NODES))
    assert changes["added"] == ["node-a", "node-b"]
    assert "nginx.balancer" in changes["others"]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["up"], "1 node: 1 up"),
        (["up", "down", "up"], "3 nodes: 2 up, 1 down (node-1)"),
        (["drained", "unknown"], "2 nodes: 1 unknown (node-1), 1 drained (node-0)"),
        (["down"] * 7, "7 nodes: 7 down (node-0, node-1, node-2, node-3, node-4 and 2 more)"),
        (None, "no status yet"),
    ],
)
def test_the_states_of_the_nodes_are_told(states: list[str] | None, words: str) -> None:
    nodes = [{"name": f"node-{number}", "state": state} for number, state in enumerate(states or [])]
    status = json.dumps({"pools": [{"name": "llm_cluster", "nodes": nodes}]}) if states else ""
    assert FILTERS.vllm_nginx_lb_told_states(status) == words
