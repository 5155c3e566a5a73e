"""A copy of the script as the role installs it: with the package beside its entry, and compiled.

Standard library only: tick.py runs with any Python.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ENTRY, PACKAGE = "vllm_nginx_lb.py", "vllm_lb"


def install(checkout: Path, target: Path, python: str) -> Path:
    """Copy the script of a checkout into a new folder, and return the path of its entry.

    The bytecode of the package is that of `python`. A checkout from before the package has a script of one file, which
    nothing compiled at its installation either.
    """
    target.mkdir(parents=True)
    files = checkout / "files"
    for path in files.glob("*.py"):
        shutil.copy(path, target)
    if (files / PACKAGE).is_dir():
        shutil.copytree(files / PACKAGE, target / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([python, "-m", "compileall", "-q", str(target / PACKAGE)], check=True)
    return target / ENTRY
