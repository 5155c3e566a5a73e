"""Faults of files and clocks: missing directories, damaged or old state, jumps of the clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest

from tests.integration.conftest import PYTHON, SCRIPT, Stack, fetch, respond

fault = pytest.mark.fault


@fault(
    2,
    "the directory of the upstream file is missing",
    sees="upstream: No such file or directory: expected a writable directory",
    keeps="requests; once it is back, so are the weights",
)
def test_a_missing_upstream_directory(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    directory, away = stack.upstream.parent, stack.directory / "away"
    directory.rename(away)
    stack.run(1)
    assert fetch(stack.ingress_port, "/v1/models").startswith("node-")
    assert not directory.exists()
    assert (stack.status()["error_cause"], stack.status()["live_weights"]) == ("file_unwritable", None)
    away.rename(directory)
    stack.run()
    assert stack.weights()["node-a"] == 10


@fault(
    2,
    "the directory of the upstream file is not writable",
    sees="…upstream.conf.…json cannot be written: Permission denied",
    keeps="requests; once it is, the change goes out",
)
def test_an_upstream_directory_that_is_not_writable(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.nodes[0].load["kv"] = 0.95
    stack.upstream.parent.chmod(0o555)
    # Root may write everywhere. Without the capability dac_override it may not.
    humble = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = [*humble, PYTHON, str(SCRIPT), "--config", str(stack.write_config()), "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    stack.heard.append(done.stderr)
    assert (done.returncode, stack.upstream.read_text()) == (1, live)
    assert fetch(stack.ingress_port, "/v1/models").startswith("node-")
    stack.upstream.parent.chmod(0o755)
    stack.run()
    assert stack.weights()["node-a"] == 10


@fault(
    2,
    "the upstream file is missing",
    sees="upstream.conf was empty or missing: written again",
    keeps="requests; the tick writes it again",
)
def test_a_missing_upstream_file(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.upstream.unlink()
    stack.run()
    assert stack.upstream.read_text() == live


@fault(
    2,
    "the state directory cannot be made",
    sees="state: Not a directory: expected a writable directory",
    keeps="requests, with the weights of before",
)
def test_a_state_directory_that_cannot_be_made(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    state = stack.directory / "state"
    shutil.rmtree(state)
    state.write_text("")
    stack.config["state_directory"] = str(state / "state")
    assert stack.script("run").returncode == 1
    assert stack.upstream.read_text() == live


DAMAGE = {
    "empty": "",
    "truncated": '{"version": 1, "po',
    "of another kind": "[[]]",
    "of an older version": '{"version": 0, "node-a": {"weight": 3, "colour": "red"}}',
}


@fault(
    10,
    "memory.json is damaged or of another version",
    sees="memory of earlier ticks dropped, starting afresh: …",
    keeps="everything: nodes are judged as on the first tick",
)
@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_memory_is_dropped(stack: Stack, content: str) -> None:
    stack.run()
    (stack.directory / "state" / "memory.json").write_text(content)
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    assert stack.status()["outcome"] == "unchanged"
    assert stack.run() == ""


@fault(
    10,
    "plan.json is damaged or of another version",
    sees="plan…",
    keeps="everything: nothing is touched, and the next collect writes a new one",
)
@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_plan_is_refused(stack: Stack, content: str) -> None:
    stack.run()
    live = stack.upstream.read_text()
    (stack.directory / "state" / "plan.json").write_text(content)
    done = stack.script("apply")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert stack.upstream.read_text() == live
    stack.run()


@fault(
    10,
    "status.json is damaged or of another version",
    sees="status.json is not …",
    keeps="everything: a tick does not need it, and writes a new one",
)
@pytest.mark.parametrize("content", ["", "[]", "null", '{"version": 1}', '{"outcome": "\\u001b[31m"}', "{"])
def test_a_damaged_status_is_one_printable_line(stack: Stack, content: str) -> None:
    stack.run()
    (stack.directory / "state" / "status.json").write_text(content)
    done = stack.script("status")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.strip().isprintable()
    stack.run()
    assert stack.script("status").returncode == 0


@fault(
    10,
    "drained.json is damaged",
    sees="drained.json is not …: what the last tick knew as drained stays so: node-b",
    keeps="everything: a drained node stays so, and `drain` or `undrain` writes a new file",
)
@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_drained_nodes_stay_so_when_their_list_is_damaged(stack: Stack, content: str) -> None:
    stack.script("drain", "node-b")
    stack.run()
    (stack.directory / "state" / "drained.json").write_text(content)
    for _ in range(2):
        stack.run()
        assert stack.weights() == {"node-a": 100, "node-b": 0, "node-c": 100}
    assert stack.script("undrain", "node-b").returncode == 0
    stack.run()
    assert stack.weights()["node-b"] == 100


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_list_of_workers_is_forgotten(stack: Stack, content: str) -> None:
    stack.run()
    (stack.directory / "state" / "workers.json").write_text(content)
    stack.run()
    workers = json.loads((stack.directory / "state" / "workers.json").read_text())
    assert [{str(pid) for pid in each} for each in workers["generations"]] == [stack.worker_pids()]


@fault(
    10,
    "the whole state directory is lost",
    sees="weight new -> 100: kv 0.10 < 0.75",
    keeps="everything: the first tick finds what is live, and changes nothing",
)
def test_a_lost_state_directory_costs_nothing(stack: Stack) -> None:
    stack.run()
    workers = stack.worker_pids()
    shutil.rmtree(stack.directory / "state")
    stack.run()
    assert (stack.status()["outcome"], stack.worker_pids()) == ("unchanged", workers)


@fault(
    10,
    "the clock jumps by an hour, back or forth",
    sees="reloaded: generation …",
    keeps="everything: no change waits longer than the interval",
)
@pytest.mark.parametrize("jump_seconds", [-3600, 3600])
def test_a_clock_that_jumps_holds_nothing_up(stack: Stack, jump_seconds: float) -> None:
    stack.run()
    stack.config["nginx"]["min_reload_interval_seconds"] = 600
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert stack.status()["outcome"] == "deferred"
    # Seen from a clock that jumped, every file was written that much later or earlier.
    for path in [*stack.upstream.parent.iterdir(), *(stack.directory / "state").iterdir()]:
        os.utime(path, (time.time() - jump_seconds,) * 2)
    stack.run()
    assert stack.weights()["node-a"] == 10
    assert stack.status()["outcome"] == "reloaded"
    stack.nodes[0].load["kv"] = 0.1
    stack.run()
    assert stack.status()["outcome"] == "deferred"
    stack.config["nginx"]["min_reload_interval_seconds"] = 0
    stack.run()
    assert stack.weights()["node-a"] == 100
    assert stack.backups()[0].read_text() == stack.upstream.read_text()


@fault(
    10,
    "a reboot: the clock that ticks count by starts again",
    sees="llm_cluster/node-a: unknown: HTTP 500, last weight held",
    keeps="everything: what was remembered counts as just read",
)
def test_a_memory_from_before_a_reboot(stack: Stack) -> None:
    stack.nodes[0].load["kv"] = 0.8
    stack.run()
    path = stack.directory / "state" / "memory.json"
    memory = json.loads(path.read_text())
    for node in memory.values():  # as on a host that had been up for ten days longer
        node["read_at"] += 864000
        node["changed_at"] += 864000
    path.write_text(json.dumps(memory))
    stack.nodes[0].answer = lambda handler: respond(handler, b"", 500)
    stack.run()
    assert stack.weights()["node-a"] == 60
