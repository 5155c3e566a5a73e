"""Contestants that are packages of PyPI, each in a virtual environment of its own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contestant import Contestant

ROOT = Path(__file__).resolve().parents[2]


def environment_of(package: str) -> Path:
    """Return the virtual environment of a package."""
    return ROOT / ".cache" / "bench" / package


@functools.cache
def install(package: str) -> str | None:
    """Make the virtual environment of a package unless it is there; return why that failed, in one line.

    A failure is not tried again for the next contestant of the same package.
    """
    requirements, directory = ROOT / "requirements" / f"bench-{package}.txt", environment_of(package)
    made = directory / ".made"
    try:
        wanted = requirements.read_text()
        if made.exists() and made.read_text() == wanted:
            return None
        print(f"Installing {package} into {directory.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run(
            [ROOT / "tools" / "make-venv", directory, requirements],
            env=os.environ | {"PYTHON": sys.executable},
            check=True,
            capture_output=True,
            text=True,
        )
        made.write_text(wanted)
    except subprocess.CalledProcessError as error:
        output = (error.stderr or error.stdout).strip().splitlines() or ["no output"]
        why = next((line for line in output if line.startswith("ERROR")), output[-1])
        return f"{package} cannot be installed: {why}"
    except OSError as error:
        return f"{package} cannot be installed: {error}"
    return None


class Packaged(Contestant):
    """A contestant that is a package of PyPI, in a virtual environment of its own.

    Attributes:
        package: its name there.
        program: the words that start it; the first is a program of its virtual environment.
    """

    package: str
    program: tuple[str, ...]

    def missing(self) -> str | None:
        """Install it, and return why that failed."""
        return install(self.package)

    def command(self) -> list[str]:
        """Return the words that start it, with the path."""
        return [str(environment_of(self.package) / "bin" / self.program[0]), *self.program[1:]]
