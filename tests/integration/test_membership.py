"""The journal has a line for each node that is added, removed, renamed or moved to another pool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Stack


def test_each_node_that_comes_or_goes_has_a_line(stack: Stack) -> None:
    nodes = stack.config["pools"][0]["nodes"]
    said = stack.run()
    for name in ("node-a", "node-b", "node-c"):
        assert f"llm_cluster/{name}: weight new -> 100: " in said
    gone = nodes.pop()
    nodes[0]["name"] = "node-z"
    lines = stack.run().splitlines()
    assert lines[0].startswith("llm_cluster/node-z: weight new -> 100: ")
    assert lines[1:3] == [
        "llm_cluster/node-a: removed from the configuration",
        "llm_cluster/node-c: removed from the configuration",
    ]
    assert lines[3].startswith("reloaded: generation "), "the outcome"
    assert stack.run() == "", "it is said once"
    stack.config["pools"].append(stack.config["pools"][0] | {"name": "other", "nodes": [nodes.pop(), gone]})
    lines = stack.run().splitlines()
    assert lines[:2] == [
        lines[0],
        "llm_cluster/node-b: moved to pool other",
    ]
    assert lines[0].startswith("other/node-c: weight new -> 100: ")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pools": 1}', '{"pools": [{"name": 1, "nodes": [{}]}]}', None])
def test_a_damaged_plan_has_no_members(stack: Stack, content: str | None) -> None:
    stack.run()
    plan = stack.directory / "state" / "plan.json"
    plan.unlink()
    if content is not None:
        plan.write_text(content)
    stack.config["pools"][0]["nodes"].pop()
    assert "removed" not in stack.run()
    assert len(json.loads(plan.read_text())["pools"][0]["nodes"]) == 2


def test_a_hostile_plan_cannot_write_to_a_terminal(stack: Stack) -> None:
    stack.run()
    plan = stack.directory / "state" / "plan.json"
    plan.write_text(json.dumps({"pools": [{"name": "a\x1b[2J", "nodes": [{"name": "b\n<0>c"}]}]}))
    assert "a?[2J/b?<0>c: removed from the configuration\n" in stack.run()
