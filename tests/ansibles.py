"""The oldest and the newest ansible-core, each in a virtual environment of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

from tests.playbook import ROOT

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = ("oldest", "newest")


def ansible_playbook(version: str) -> Path:
    """Return ansible-playbook of a version, one of VERSIONS. The first use makes the environment, in some 15 s.

    The environments stay in the repository (make clean removes them), and are made anew when their requirements change.
    """
    requirements = ROOT / "requirements" / f"ansible-{version}.txt"
    folder = ROOT / f".venv-ansible-{version}"
    made = folder / "requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    # Other workers of pytest wait for the one that makes it.
    with (ROOT / f".venv-ansible-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() or made.read_text(encoding="utf-8") != wanted:
            environment = dict(os.environ)
            if version == "newest":
                newest = subprocess.run([ROOT / "tools/newest-python"], capture_output=True, text=True, check=True)
                environment["PYTHON"] = newest.stdout.strip()
            result = subprocess.run(
                [ROOT / "tools" / "make-venv", folder, requirements],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            assert result.returncode == 0, result.stdout + result.stderr
            made.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "ansible-playbook"
