"""Start a program of the benchmark, wait until it serves, and end it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.contestant import ContestantError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# The prefix of a command that decides weights. Such a command runs ten times as often here as in production, and shares
# the processors with the nodes, which have machines of their own in production.
LOW_PRIORITY = ("nice", "-n", "10")
START_SECONDS = 180  # LiteLLM's two workers import for a minute when none of it is in the page cache


def find_program(name: str) -> str | None:
    """Return a program's path; Debian has some in folders that are not in everybody's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


@contextmanager
def started(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the foreground of this session, its output in a file, and end it afterwards.

    Not in a session of its own: the kernel's autogroup scheduler would give it a group of its own.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=log.parent
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_condition(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a condition holds.

    Raises:
        ContestantError: the process ended, or the time is up; with the last lines of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline or process.poll() is not None:
            tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
            raise ContestantError(f"{what}: not within {START_SECONDS} s, or its process ended: " + " | ".join(tail))
        time.sleep(0.05)


def await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a URL answers with status 200.

    Raises:
        ContestantError: see await_condition.
    """

    def answers() -> bool:
        try:
            with urlopen(url, timeout=5) as answer:  # noqa: S310 - an address of 127.0.0.1
                return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's own number
        except (URLError, OSError):
            return False

    await_condition(answers, f"{url} answers", process, log)
