"""What ansible-playbook prints with the project's ansible.cfg: callback_plugins/changes.py."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.playbook import play

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # Ansible takes seconds for a playbook
LINE = "one line, longer than the eighty columns at which YAML folds a text, " + "and so on " * 9 + "to its end"
TASKS: list[dict[str, Any]] = [
    {"name": "Unchanged", "command": "true", "changed_when": False},
    {"name": "Skipped", "command": "true", "when": False},
    {
        "name": "Looped",
        "command": "test {{ item }} = 1",
        "loop": [1, 2],
        "changed_when": "item == 1",
        "failed_when": False,
    },
    {"name": "Included", "include_tasks": "more.yml"},
    {"name": "Line", "debug": {"msg": LINE}},
    {"name": "Table", "debug": {"msg": "NODE  STATE\nnode-a  up"}},
    {"name": "Changed", "command": "true"},
]
MORE = [{"name": "Unchanged within", "command": "true", "changed_when": False}]


def output(folder: Path, *options: str, tasks: list[dict[str, Any]] = TASKS) -> tuple[int, str]:
    """Run tasks on this machine; return the exit code and the output."""
    (folder / "more.yml").write_text(yaml.safe_dump(MORE))
    playbook = folder / "play.yml"
    playbook.write_text(yaml.safe_dump([{"name": "Play", "hosts": "ingress", "gather_facts": False, "tasks": tasks}]))
    inventory = {"ingress": {"hosts": {"ingress-1": {"ansible_connection": "local"}}}}
    done = play(folder, inventory, playbook, *options, ansible_python_interpreter=sys.executable)
    return done.returncode, done.stdout + done.stderr


def test_what_changed_and_what_speaks_is_printed(tmp_path: Path) -> None:
    code, said = output(tmp_path)
    assert code == 0, said
    assert [line.split("[")[1].split("]")[0] for line in said.splitlines() if line.startswith("TASK")] == [
        "Looped",
        "Line",
        "Table",
        "Changed",
    ]
    assert "changed: [ingress-1] => (item=1)" in said
    assert "(item=2)" not in said
    assert f"ok: [ingress-1] => {LINE}\n" in said
    assert "ok: [ingress-1] => \nNODE  STATE\nnode-a  up\n" in said
    assert "[WARNING]" not in said


def test_a_failure_is_printed(tmp_path: Path) -> None:
    code, said = output(tmp_path, tasks=[TASKS[0], {"name": "Failing", "fail": {"msg": "the reason"}}])
    assert code == 2
    assert "TASK [Failing]" in said
    assert "the reason" in said
    assert "TASK [Unchanged]" not in said


def test_everything_is_printed_with_v(tmp_path: Path) -> None:
    code, said = output(tmp_path, "-v")
    assert code == 0, said
    assert all(f"TASK [{task['name']}]" in said for task in [*TASKS, *MORE])
    assert "skipping: [ingress-1]" in said
