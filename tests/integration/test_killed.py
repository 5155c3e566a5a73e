"""A tick is killed at each of its steps: strace sends SIGKILL when the tick enters the system call of that step."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import PYTHON, SCRIPT, Stack, fetch
from vllm_lb.under_way import under_way

if TYPE_CHECKING:
    from pathlib import Path

FORK = "vfork,clone,clone3"
CALLS = f"flock,connect,write,fchmod,fsync,rename,{FORK}"


@dataclass(frozen=True)
class Step:
    """A step of `apply`, as the n-th call of a kind, and what the next tick has to do after a kill at this step."""

    name: str
    call: str
    number: int
    next_tick: str = "reloaded"


RECORDING = [
    Step("puts status.json in place", "rename", 4, next_tick="unchanged"),
    Step("puts workers.json in place", "rename", 5, next_tick="unchanged"),
]
PUBLISHING = [
    Step("locks its mark", "flock", 1),
    Step("takes the lock", "flock", 2),
    Step("gives the lock its mode", "fchmod", 2),
    Step("asks nginx what is live", "connect", 1),
    Step("tests what is there", FORK, 1),
    Step("writes the record of the new file", "write", 1),
    Step("gives the record its mode", "fchmod", 3),
    Step("syncs the record", "fsync", 1),
    Step("renames the record into place", "rename", 1),
    Step("syncs the directory with the record", "fsync", 2),
    Step("writes a copy of the new file", "write", 2),
    Step("gives the copy its mode", "fchmod", 4),
    Step("syncs the copy", "fsync", 3),
    Step("writes the way back", "write", 3),
    Step("gives the way back its mode", "fchmod", 5),
    Step("syncs the way back", "fsync", 4),
    Step("writes the new file", "write", 4),
    Step("gives the new file its mode", "fchmod", 6),
    Step("syncs the new file", "fsync", 5),
    Step("renames the new file into place", "rename", 2),
    Step("syncs the directory", "fsync", 6),
    Step("tests the new file", FORK, 2),
    Step("asks nginx for its workers", "connect", 2),
    Step("reloads", FORK, 3),
    Step("asks nginx for the new generation", "connect", 3, next_tick="(reloaded|unchanged)"),
    Step("keeps the copy", "rename", 3, next_tick="unchanged"),
    Step("syncs the directory with the copy", "fsync", 7, next_tick="unchanged"),
]


def marked(step: Step) -> object:
    """Return a step as a parameter set that is a row of docs/reliability.md."""
    said = "…" if "(" in step.next_tick else step.next_tick
    mark = pytest.mark.fault(
        1,
        f"a tick dies as it {step.name}",
        sees=f"{said}: generation …",
        keeps="requests, and a restart of nginx; the next tick repairs the rest",
    )
    return pytest.param(step, marks=mark, id=step.name.replace(" ", "-"))


def strace(stack: Stack, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the script under strace."""
    script = [PYTHON, str(SCRIPT), "--config", str(stack.write_config()), command]
    return subprocess.run(
        ["/usr/bin/strace", *options, *script], capture_output=True, text=True, timeout=60, check=False
    )


def overload(stack: Stack) -> None:
    """Change the load, so that the next tick publishes."""
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    assert stack.script("collect").returncode == 0


@pytest.mark.parametrize("step", [marked(step) for step in [*PUBLISHING, *RECORDING]])
def test_the_next_tick_repairs_what_a_killed_one_left(stack: Stack, step: Step) -> None:
    overload(stack)
    kill = f"inject={step.call}:signal=KILL:when={step.number}"
    killed = strace(stack, "apply", "-qq", "-o", str(stack.directory / "trace"), "-e", f"trace={CALLS}", "-e", kill)
    assert killed.returncode == -9, killed.stderr

    assert fetch(stack.ingress_port, "/v1/models").startswith("node-")
    subprocess.run([*stack.nginx, "-t", "-q"], check=True)

    done = stack.script("run", JOURNAL_STREAM="8:1")
    assert done.returncode == 0, done.stderr
    assert "<4>a tick was killed: apply began at 2" in done.stderr
    assert re.search(f"{step.next_tick}: generation {stack.status()['generation']}", done.stderr)
    assert stack.weights() == {"node-a": 10, "node-b": 100, "node-c": 100}
    stack.await_generation(stack.status()["generation"])
    assert f"{stack.nodes[0].port} weight=10 " in stack.upstream.read_text()
    assert stack.backups()[0].read_text() == stack.upstream.read_text()
    assert not list(stack.upstream.parent.glob(".*.new"))


def test_the_steps_above_are_all_there_are(stack: Stack) -> None:
    overload(stack)
    trace = stack.directory / "trace"
    assert strace(stack, "apply", "-qq", "-y", "-o", str(trace), "-e", f"trace={CALLS}").returncode == 0
    seen: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        if found := re.match(r"(\w+)\(", line):
            call = FORK if found[1] in FORK.split(",") else found[1]
            counts[call] = number = counts.get(call, 0) + 1
            asks = call == "connect" and number <= 3  # and then again until the new workers answer
            if asks or call in (FORK, "flock") or str(stack.upstream.parent) in line:
                seen.append((call, number))
    assert seen == [(step.call, step.number) for step in PUBLISHING]


def killed_collect(stack: Stack, call: str, when: str, *options: str) -> None:
    """Kill a collect that has something to decide as it enters a system call."""
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    kill = f"inject={call}:signal=KILL:{when}"
    killed = strace(stack, "collect", "-qq", "-o", "/dev/null", *options, "-e", f"trace={call}", "-e", kill)
    assert killed.returncode == -9, killed.stderr


@pytest.mark.fault(
    1,
    "a tick dies as it writes down its history or its metrics",
    sees="reloaded: generation …",
    keeps="requests; the next tick goes on with what was decided",
)
@pytest.mark.parametrize("call", ["pread64", "rename"])
def test_a_collect_that_is_killed_as_it_writes_things_down_is_repaired(stack: Stack, call: str) -> None:
    state = stack.directory / "state"
    options = ["-P", str(state / "history.jsonl")] if call == "pread64" else []
    killed_collect(stack, call, "when=1" if call == "pread64" else "when=3", *options)
    assert stack.run().startswith("a tick was killed: collect began at 2")
    assert "a tick was killed" not in stack.run(), "it is said once"
    assert stack.weights() == {"node-a": 10, "node-b": 100, "node-c": 100}
    assert len(stack.script("explain", "node-a").stdout.splitlines()) > 2
    assert 'vllm_nginx_lb_node_weight{node="node-a",pool="llm_cluster"} 10.0\n' in (state / "metrics.prom").read_text()
    assert not list(state.glob(".*.new"))


@pytest.mark.fault(
    1,
    "a tick dies between its plan and its memory",
    sees="weight 100 -> 10: kv 0.95 >= 0.92",
    keeps="requests; the next tick decides anew",
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_collect_that_is_killed_is_repaired(stack: Stack, number: int) -> None:
    killed_collect(stack, "rename", f"when={number}")
    assert fetch(stack.ingress_port, "/v1/models").startswith("node-")
    stack.run()
    assert stack.weights() == {"node-a": 10, "node-b": 100, "node-c": 100}
    assert not list((stack.directory / "state").glob(".*.new"))


@pytest.mark.parametrize("command", ["run", "collect", "apply"])
def test_a_tick_that_fails_was_not_killed(stack: Stack, command: str) -> None:
    stack.run()
    stack.stop()
    stack.config["scrape"]["api_key_file"] = str(stack.directory / "missing")
    assert stack.script(command).returncode in (1, 2)
    stack.config["scrape"]["api_key_file"] = None
    stack.start()
    assert "a tick was killed" not in stack.run()
    assert not list((stack.directory / "state").glob(".*.began"))


@pytest.mark.parametrize("half", ["collect", "apply"])
def test_a_tick_that_ended_with_its_host_is_no_sign_of_an_overload(stack: Stack, half: str) -> None:
    stack.run()
    mark = stack.directory / "state" / f".{half}.began"
    mark.touch()
    os.utime(mark, (1_000_000_000, 1_000_000_000))
    said = stack.run()
    assert f"a tick did not end: {half} began at 2001-09-09T01:46:40.000+00:00, and the host was started again" in said
    assert "killed" not in said
    assert not mark.exists()


def test_collect_may_read_the_mark_of_an_apply_that_was_killed(tmp_path: Path) -> None:
    """Another user runs collect, and the unit has a strict umask."""
    dies = (
        "import os, sys; from pathlib import Path; from vllm_lb.under_way import under_way; os.umask(0o077)\n"
        "with under_way(Path(sys.argv[1]), 'apply'): os.kill(os.getpid(), 9)"
    )
    path = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    done = subprocess.run([PYTHON, "-c", dies, tmp_path], env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert stat.S_IMODE((tmp_path / ".apply.began").stat().st_mode) == 0o644


def test_an_apply_that_is_at_work_was_not_killed(stack: Stack) -> None:
    stack.run()
    state = stack.directory / "state"
    with under_way(state, "apply"):
        done = stack.script("collect")
        assert (done.returncode, done.stderr) == (0, "")
        assert (state / ".apply.began").exists()
    assert not (state / ".apply.began").exists()


def test_only_old_temporary_files_of_ours_are_removed(stack: Stack) -> None:
    stack.run()
    state = stack.directory / "state"
    kept = [state / name for name in (".young.json.new", "no.new", ".other", ".link.new", ".folder.new")]
    old = [state / ".drained.json.new", state / ".history-000001.jsonl.gz.new"]
    for path in [*kept[:3], *old]:
        path.touch()
    kept[3].symlink_to(state / "plan.json")
    kept[4].mkdir()
    for path in [*kept[1:], *old]:
        os.utime(path, (1, 1), follow_symlinks=False)
    stack.run()
    assert not [path for path in old if path.exists()]
    assert all(os.path.lexists(path) for path in kept)


def test_a_mark_is_never_written_through_a_link(stack: Stack) -> None:
    stack.run()
    target = stack.directory / "target"
    (stack.directory / "state" / ".apply.began").symlink_to(target)
    stack.run()
    assert not target.exists()


def test_a_tick_that_changes_nothing_waits_for_no_disk(stack: Stack) -> None:
    stack.run()
    trace = stack.directory / "trace"
    assert strace(stack, "run", "-qq", "-o", str(trace), "-e", "trace=fsync,fdatasync,rename").returncode == 0
    calls = re.findall(r"^\d*\s*(\w+)\(", trace.read_text(), re.MULTILINE)
    assert set(calls) == {"rename"}
    assert stack.status()["outcome"] == "unchanged"


@pytest.mark.fault(
    1,
    "a tick dies between rename and reload, and nothing tells what nginx runs (no confirm_url)",
    sees="reloaded: generation …",
    keeps="requests, and a restart of nginx; the next tick reloads",
)
def test_renamed_but_never_reloaded_is_found_without_confirmation(stack: Stack) -> None:
    stack.config["nginx"]["confirm_url"] = None
    overload(stack)
    before = stack.generation()
    kill = f"inject={FORK}:signal=KILL:when=3"
    assert strace(stack, "apply", "-qq", "-o", "/dev/null", "-e", f"trace={FORK}", "-e", kill).returncode == -9
    assert "weight=10 " in stack.upstream.read_text()
    assert stack.generation() == before
    stack.run()
    assert stack.generation() == stack.status()["generation"] != before
