"""What a process costs: processor time, duration and memory, from the operating system.

Standard library only, as tick.py.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one process cost: processor seconds of it and its children, wall seconds, peak memory in MB."""

    cpu: float
    wall: float
    memory: float


def measure(command: list[str]) -> Cost:
    """Run a command to its end, and return what the operating system charged for it; exits if it fails."""
    with tempfile.TemporaryFile() as stderr:  # a pipe that nobody reads would stop a talkative command
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            stderr.seek(0)
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}: {stderr.read().decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def medians(commands: list[list[str]], runs: int) -> list[Cost]:
    """Run commands in turn, so that a change of the machine's speed meets all of them; return each one's medians."""
    costs: list[list[Cost]] = [[] for _ in commands]
    for _ in range(runs):
        for command, seen in zip(commands, costs, strict=True):
            seen.append(measure(command))
    return [
        Cost(*(statistics.median(getattr(cost, name) for cost in seen) for name in ("cpu", "wall", "memory")))
        for seen in costs
    ]
