"""Runs of ansible-playbook for tests, on this machine, with an inventory of their own and the project's group_vars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
ANSIBLE_PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


def play(
    folder: Path,
    inventory: dict[str, Any],
    playbook: Path,
    *options: str,
    path: str = "",
    within: Sequence[str] = (),
    program: Path = ANSIBLE_PLAYBOOK,
    **variables: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on an inventory. All files of Ansible are below a folder.

    Args:
        folder: where hosts.yml is written.
        inventory: the groups, with their hosts.
        playbook: what to run.
        options: further options of ansible-playbook.
        path: where Ansible's tasks find programs before those in PATH.
        program: ansible-playbook of the wanted version.
        within: a command that runs the command that follows it, such as unshare.
        variables: extra variables.
    """
    started = start(folder, inventory, playbook, *options, path=path, within=within, program=program, **variables)
    try:
        stdout, stderr = started.communicate(timeout=300)
    except BaseException:
        started.kill()
        raise
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


def start(
    folder: Path,
    inventory: dict[str, Any],
    playbook: Path,
    *options: str,
    path: str = "",
    within: Sequence[str] = (),
    program: Path = ANSIBLE_PLAYBOOK,
    **variables: Any,
) -> subprocess.Popen[str]:
    """Start a playbook in a process group of its own, as a shell does; see `play`."""
    if not (group_vars := folder / "group_vars").exists():
        group_vars.symlink_to(ROOT / "inventory" / "group_vars")
    hosts = folder / "hosts.yml"
    hosts.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    return subprocess.Popen(
        [*within, program, "-i", hosts, "-e", json.dumps(variables), *options, playbook],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=os.environ
        | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1"}
        | {"PATH": os.pathsep.join(filter(None, [path, os.environ["PATH"]]))},
    )
