"""An attacker controls the unprivileged half: what can its files make the half that runs as root do?"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import SEED, Stack, respond, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[dict[str, Any]], object]

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def attack(what: str, sees: str, keeps: str = "the live configuration") -> pytest.MarkDecorator:
    """Mark a test as one of an attack."""
    return pytest.mark.fault(14, what, sees=sees, keeps=keeps)


def assert_refused(stack: Stack) -> None:
    """Apply the plan in the state directory: one line says why it is refused, and nothing is touched."""
    done = stack.script("apply")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.isprintable()
    assert len(line) < 400
    assert stack.upstream.read_text() == SEED
    assert stack.generation() == "seed"
    assert (stack.status()["outcome"], stack.status()["error"]) == ("failed", line)


# --- A plan that lies ---------------------------------------------------------------------------------------


def node(**values: Any) -> Change:
    """Change what the plan says of its first node."""
    return lambda plan: plan["pools"][0]["nodes"][0].update(values)


def every_node(**values: Any) -> Change:
    """Change what the plan says of all nodes."""
    return lambda plan: [each.update(values) for each in plan["pools"][0]["nodes"]]


def in_nodes(change: Callable[[list[Any]], object]) -> Change:
    """Change the plan's list of nodes."""
    return lambda plan: change(plan["pools"][0]["nodes"])


def in_pools(change: Callable[[list[Any]], object]) -> Change:
    """Change the plan's list of pools."""
    return lambda plan: change(plan["pools"])


def plan_that(name: str, what: str, problem: str, change: Change) -> Any:
    """Return a case: what is wrong with a plan, and the message about it."""
    return pytest.param(change, id=name, marks=attack(f"the plan {what}", f"plan refused: {problem}"))


FIRST, NOT_OURS = "plan.pools[0].nodes[0]", "pool llm_cluster: its nodes are not the configured ones"
OUT_OF_RANGE = f"{FIRST}.weight: …: expected a number from 0 to 100"


@pytest.mark.parametrize(
    "change",
    [
        plan_that("address", "leads elsewhere", "node node-a: address 10.9.9.9 instead", node(address="10.9.9.9")),
        plan_that("socket", "leads to a socket", f"{FIRST}.address: …", node(address="unix:/run/docker.sock")),
        plan_that("syntax", "has nginx syntax", f"{FIRST}.address: …", node(address="127.0.0.1; } server { listen 1")),
        plan_that("name", "has nginx syntax in a name", f"{FIRST}.name: …", node(name="node-a; } include /tmp/x")),
        plan_that("line", "forges a log line", f"{FIRST}.reason: …", node(reason="x\n<0>forged")),
        plan_that("escape", "has terminal escapes", f"{FIRST}.reason: …", node(reason=ESCAPE)),
        plan_that("bidi", "has invisible characters", f"{FIRST}.error: …", node(error="\u202egnp.exe")),
        plan_that("long", "has a reason of 1 MB", f"{FIRST}.reason: …", node(reason="x" * 2**20)),
        plan_that("twice", "has a node twice", NOT_OURS, in_nodes(lambda nodes: nodes.append(nodes[0]))),
        plan_that("unknown", "has an unknown node", NOT_OURS, node(name="node-z")),
        plan_that("missing", "lacks a node", NOT_OURS, in_nodes(lambda nodes: nodes.pop())),
        plan_that("order", "exchanges nodes", NOT_OURS, in_nodes(lambda nodes: nodes.reverse())),
        plan_that("pools", "has another pool", "its pools…", in_pools(lambda pools: pools.append(pools[0]))),
        plan_that(
            "none", "has no pool", "its pools are not the configured ones", in_pools(lambda pools: pools.clear())
        ),
        plan_that(
            "path", "names a file", "plan.'upstream_file': unknown", lambda plan: plan.update(upstream_file="/x")
        ),
        plan_that(
            "command", "names a command", "plan.'reload_command': …", lambda plan: plan.update(reload_command=[])
        ),
        plan_that("port", "names a port", f"{FIRST}.'port': unknown key", node(port=22)),
        plan_that("1000", "has a weight of 1000", OUT_OF_RANGE, node(weight=1000)),
        plan_that("minus-1", "has a weight of -1", OUT_OF_RANGE, node(weight=-1)),
        plan_that("1e9", "has a weight of 1e9", OUT_OF_RANGE, node(weight=1e9)),
        plan_that("digits", "has a weight of 5,000 digits", f"{FIRST}.weight: …", node(weight=10**4000)),
        plan_that("text", "has a weight with nginx syntax", OUT_OF_RANGE, node(weight="10; }")),
        plan_that("true", "has a weight of true", OUT_OF_RANGE, node(weight=True)),
        plan_that("nan", "has a weight of NaN", OUT_OF_RANGE, node(weight=float("nan"))),
        plan_that("zero", "takes all nodes out", "pool llm_cluster: no node would serve", every_node(weight=0)),
        plan_that("gone", "has no address", "node node-a: a weight without an address", node(address=None)),
    ],
)
def test_a_plan_that_lies_is_refused(stack: Stack, change: Change) -> None:
    assert stack.script("collect").returncode == 0
    path = stack.directory / "state" / "plan.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    assert_refused(stack)


# --- A file that is none --------------------------------------------------------------------------------------


def plan_is(name: str, what: str, problem: str, make: Callable[[Path, str], object]) -> Any:
    """Return a case: what is in place of the plan, and the message about it."""
    return pytest.param(make, id=name, marks=attack(f"the plan is {what}", f"plan.json {problem}"))


def make_large(path: Path, _content: str) -> None:
    """Make a sparse file of 64 MB."""
    with path.open("wb") as file:
        file.truncate(2**26)


def make_socket(path: Path, _content: str) -> None:
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link(path: Path, content: str) -> None:
    """Make a link to a plan that would be good."""
    elsewhere = path.with_name("elsewhere.json")
    elsewhere.write_text(content)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "make",
    [
        plan_is("empty", "empty", "is not JSON", lambda path, _: path.touch()),
        plan_is("cut", "cut off", "is not JSON", lambda path, content: path.write_text(content[:100])),
        plan_is("bytes", "no text", "is not JSON", lambda path, _: path.write_bytes(b"\xff\xfe\x00")),
        plan_is("deep", "nested 100,000 deep", "is not JSON", lambda path, _: path.write_text("[" * 10**5)),
        plan_is("digits", "a number of 10,000 digits", "is not JSON", lambda path, _: path.write_text("9" * 10**4)),
        plan_is("large", "too large", "is larger than … bytes", make_large),
        plan_is("link", "a link to another one", "cannot be read", make_link),
        plan_is("device", "a link to a device", "cannot be read", lambda path, _: path.symlink_to("/dev/zero")),
        plan_is("pipe", "a pipe", "is not a regular file", lambda path, _: os.mkfifo(path)),
        plan_is("socket", "a socket", "cannot be read", make_socket),
        plan_is("directory", "a directory", "cannot be read", lambda path, _: path.mkdir()),
    ],
)
def test_a_plan_that_is_none_is_refused(stack: Stack, make: Callable[[Path, str], object]) -> None:
    assert stack.script("collect").returncode == 0
    path = stack.directory / "state" / "plan.json"
    content = path.read_text()
    path.unlink()
    make(path, content)
    assert_refused(stack)


# --- Traps in the state directory ------------------------------------------------------------------------------

WRITTEN = ["status.json", "metrics.prom", "workers.json", "plan.json", "memory.json"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Make a file that must keep its content and its mode."""
    path = tmp_path / "victim"
    path.write_text("root's own")
    path.chmod(0o600)
    return path


def assert_untouched(victim: Path) -> None:
    """Fail when the victim was written to."""
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("root's own", 0o600)


@attack("links lie where files will be written", "reloaded: generation", "the file they lead to; the tick ends well")
@pytest.mark.parametrize("name", ["{}", ".{}.new"], ids=["itself", "temporary"])
@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_a_link_is_replaced_and_not_followed(stack: Stack, victim: Path, name: str, *, hard: bool) -> None:
    state = stack.directory / "state"
    state.mkdir()
    for each in WRITTEN:
        trap = state / name.format(each)
        if hard:
            trap.hardlink_to(victim)
        else:
            trap.symlink_to(victim)
    stack.run()
    assert_untouched(victim)
    for each in WRITTEN:
        assert (state / each).lstat().st_mode & 0o170777 == 0o100644
        assert (state / each).stat().st_nlink == 1
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}


@attack("the lock is a link", "state: Too many levels of symbolic links", "the file it leads to")
def test_a_lock_that_is_a_link_is_not_followed(stack: Stack, victim: Path) -> None:
    (stack.directory / "state").mkdir()
    (stack.directory / "state" / "lock").symlink_to(victim)
    for arguments in (["run"], ["collect"], ["drain", "node-a"]):
        done = stack.script(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert_untouched(victim)
    assert stack.upstream.read_text() == SEED


@attack("the lock is another file, by a hard link", "node-a drained", "that file's mode")
def test_a_lock_that_is_a_hard_link_keeps_its_mode(stack: Stack, victim: Path) -> None:
    (stack.directory / "state").mkdir()
    (stack.directory / "state" / "lock").hardlink_to(victim)
    assert stack.script("drain", "node-a").returncode == 0
    assert_untouched(victim)


@attack("the lock is a pipe", "reloaded: generation", "the tick, which does not wait for anybody")
def test_a_lock_that_is_a_pipe_blocks_nobody(stack: Stack) -> None:
    (stack.directory / "state").mkdir()
    os.mkfifo(stack.directory / "state" / "lock")
    stack.run()
    assert stack.script("apply").returncode == 0


@attack("a directory lies where the status will be written", "status.json cannot be written", "what is live already")
def test_a_status_that_cannot_be_written_is_named(stack: Stack) -> None:
    (stack.directory / "state" / ".status.json.new" / "full").mkdir(parents=True)
    done = stack.script("run")
    assert done.returncode == 1
    assert stack.upstream.read_text() != SEED
    wait_for(lambda: stack.generation() != "seed")


# --- What reaches a terminal -----------------------------------------------------------------------------------


@attack(
    "the status has terminal escapes", "status.json is not one of this version's: …reason: … expected printable text"
)
def test_a_status_with_escapes_does_not_reach_a_terminal(stack: Stack) -> None:
    stack.run()
    path = stack.directory / "state" / "status.json"
    status = stack.status()
    for key, record in (("error", status), ("reason", status["pools"][0]["nodes"][0])):
        record[key] = ESCAPE
        path.write_text(json.dumps(status))
        done = stack.script("status")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.strip().isprintable()
        assert stack.script("status", "--json").stdout.replace("\n", "").isprintable()
        record[key] = None if key == "error" else "fine"


@attack("a node sends terminal escapes", "node-b: unknown: content type ", "its weight, and the operator's terminal")
def test_a_node_with_escapes_does_not_reach_a_terminal(stack: Stack) -> None:
    stack.run()
    stack.nodes[1].answer = lambda handler: respond(handler, b"", content_type=ESCAPE)
    said = stack.run() + stack.script("status").stdout + stack.script("status", "--json").stdout
    assert said.replace("\n", "").isprintable()
    assert stack.weights()["node-b"] == 100
