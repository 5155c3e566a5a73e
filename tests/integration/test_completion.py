"""What bash and zsh complete for vllm-nginx-lb, in the shells themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Stack

ROOT = Path(__file__).resolve().parents[2]
BASH = ROOT / "files" / "completion" / "vllm-nginx-lb.bash"
ZSH = ROOT / "files" / "completion" / "_vllm-nginx-lb"
GENERATE = ROOT / "docs" / "generate_completion.py"
STATE = "/var/lib/vllm-nginx-lb"
# Uses the host's bash-completion if there is one. The last word is the one that is being typed.
COMPLETE = """
[[ ! -r /usr/share/bash-completion/bash_completion ]] || . /usr/share/bash-completion/bash_completion
set -u
. "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p vllm-nginx-lb | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return the folder bash is in; it is the state directory too."""
    return tmp_path


def completed(here: Path, *words: str) -> set[str]:
    """Return what bash completes the last word to."""
    script = here / "completion.bash"
    script.write_text(BASH.read_text(encoding="utf-8").replace(STATE, str(here)), encoding="utf-8")
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "vllm-nginx-lb", *words]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def write_status(here: Path, *names: str) -> None:
    nodes = [{"name": name, "address": None, "reason": '"name":"no-node","address"'} for name in names]
    pools = [{"name": "llm_cluster", "held": None, "nodes": nodes}]
    (here / "status.json").write_text(json.dumps({"version": 1, "pools": pools}, indent=1), encoding="utf-8")


def test_the_files_are_those_of_the_present_command_line() -> None:
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("shell", "file"), [("bash", BASH), ("zsh", ZSH)])
def test_the_shell_can_read_its_file(shell: str, file: Path) -> None:
    subprocess.run([shell, "-n", file], check=True)


def test_bash_completes_commands(here: Path) -> None:
    assert {"run", "status", "explain", "replay", "drain", "check-config"} <= completed(here, "")
    assert completed(here, "ro") == {"rollback"}
    assert completed(here, "--config", "my.yml", "che") == {"check-config"}


def test_bash_completes_options(here: Path) -> None:
    assert completed(here, "--") == {"--help", "--version", "--config"}
    assert completed(here, "run", "--") == {"--help", "--dry-run"}
    options = {"--help", "--json", "--watch", "--pool", "--state", "--limit", "--all"}
    assert completed(here, "status", "--") == options
    assert completed(here, "status", "--state", "d") == {"down", "drained"}
    assert completed(here, "explain", "node-a", "--s") == {"--since"}
    assert completed(here, "replay", "--policy", "st") == {"static", "stepped"}


@pytest.mark.parametrize(
    ("command", "takes_several"), [("drain", True), ("undrain", True), ("explain", False), ("status", True)]
)
def test_bash_completes_the_names_of_nodes(here: Path, command: str, *, takes_several: bool) -> None:
    names = {"node-a", "node-b", "gpu.7"}
    write_status(here, *names)
    assert completed(here, command, "") == names
    assert completed(here, command, "node-") == {"node-a", "node-b"}
    assert completed(here, command, "node-a", "") == (names if takes_several else set())


def test_bash_completes_files(here: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "config.yml"):
        (here / name).touch()
    assert completed(here, "--config", "conf") == {"config.yml"}
    assert completed(here, "replay", "a.jsonl", "b") == {"b.jsonl"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_without_nodes_nothing_is_completed_and_nothing_said(here: Path, text: str) -> None:
    assert completed(here, "drain", "") == set()
    (here / "status.json").write_text(text)
    assert completed(here, "drain", "") == set()


def test_no_name_is_run_by_the_shell_that_completes_it(here: Path) -> None:
    write_status(here, "$(touch run)", "`touch run`", "node-a")
    assert completed(here, "drain", "") == {"node-a"}
    assert not (here / "run").exists()


def test_names_are_found_in_the_status_that_the_script_writes(stack: Stack) -> None:
    stack.run()
    state = stack.directory / "state"
    assert completed(state, "drain", "") == {"node-a", "node-b", "node-c"}
