"""Codes decide and sentences explain: after every sentence of the state is reworded, the script behaves the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.integration.conftest import SEED, Stack, respond

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = {"reason", "error", "held", "deferred", "drain_reason"}


def reworded(data: Any) -> Any:
    """Return data with other words for every sentence."""
    if isinstance(data, dict):
        return {
            key: "in other words" if key in SENTENCES and isinstance(value, str) else reworded(value)
            for key, value in data.items()
        }
    return [reworded(each) for each in data] if isinstance(data, list) else data


def reword(directory: Path) -> None:
    """Reword every sentence in the state directory."""
    for name in ("plan.json", "status.json"):
        if (directory / name).exists():
            (directory / name).write_text(json.dumps(reworded(json.loads((directory / name).read_text()))))


def codes(data: Any) -> Any:
    """Return data without its sentences, and without the values that differ from run to run."""
    times = {"decided_at", "succeeded_at", "changed_at", "drained_since", "scrape_seconds"}
    skipped = SENTENCES | times | {"generation", "address"}
    if isinstance(data, dict):
        return {key: codes(value) for key, value in data.items() if key not in skipped}
    return [codes(each) for each in data] if isinstance(data, list) else data


def year(stack: Stack, *, in_other_words: bool) -> tuple[list[Any], list[str]]:
    """Cause all kinds of events; return the decision of each tick, and the lines with codes that it logged."""
    seen, state = list[Any](), stack.directory / "state"
    said: list[str] = []

    def tick(expect: int = 0) -> None:
        assert stack.script("collect").returncode == 0
        if in_other_words:
            reword(state)
        done = stack.script("apply", JOURNAL_STREAM="8:1")
        assert done.returncode == expect, done.stderr
        said.append(str(len(done.stderr.splitlines())))
        seen.append(codes(stack.status()))
        if in_other_words:
            reword(state)

    tick()
    stack.script("drain", "node-c")
    tick()
    (state / "drained.json").write_text("damaged")  # now only the status says, by its causes, which nodes are drained
    tick()
    stack.nodes[1].answer = lambda request: respond(request, b"no", 500)
    tick()
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600
    stack.nodes[0].load["kv"] = 0.95
    tick()  # a deferred change is logged
    tick()  # once
    for node in stack.nodes:
        node.answer = lambda request: respond(request, b"no", 500)
    tick(expect=1)  # no node can be read: the pool is held
    return seen, said


def test_rewording_every_sentence_changes_nothing(stack: Stack, tmp_path_factory: Any) -> None:
    plain, lines = year(stack, in_other_words=False)
    directory = stack.directory / "state"
    directory.rename(tmp_path_factory.mktemp("plain") / "state")
    for beside in stack.upstream.parent.glob(".*"):
        beside.unlink()
    stack.stop()
    stack.upstream.write_text(SEED)
    stack.start()
    for node in stack.nodes:
        node.answer = None
        node.load["kv"] = 0.1
    stack.config["nginx"]["min_reload_interval_seconds"] = 0
    again, same_lines = year(stack, in_other_words=True)
    assert again == plain
    assert same_lines == lines
    causes = {node["cause"] for tick in plain for pool in tick["pools"] for node in pool["nodes"]}
    assert causes == {"kv_level", "drained_by_operator", "held"}
    assert [tick["deferred_cause"] for tick in plain] == [*[None] * 4, *["cooldown"] * 3]
    assert plain[-1]["error_cause"] == "pool_held"
    assert plain[-1]["pools"][0]["held_cause"] == "no_node_readable"
