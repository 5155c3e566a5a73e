"""What every contestant of the real-time benchmark has in common."""

from __future__ import annotations

import abc
import os
import shutil
import subprocess
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# What decides weights runs ten times as often here as in life, beside nodes that in life have machines of their own.
POLITELY = ("nice", "-n", "10")
START_SECONDS = 180  # LiteLLM's two workers import for a minute when none of it is in the page cache


class ContestantError(Exception):
    """A contestant could not be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One simulated node: where it listens, and what it can do relative to the others (0.01 to 100)."""

    name: str
    host: str
    port: int
    capacity: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a contestant runs.

    Attributes:
        directory: for its files and logs; empty, and removed after the run.
        backends: the nodes it balances.
        port: where it must serve /v1, on 127.0.0.1.
        status_port: one more free port of 127.0.0.1, for what it needs.
        scale: real seconds per second of the model; 0.1 is a run ten times as fast as life.
    """

    directory: Path
    backends: tuple[Backend, ...]
    port: int
    status_port: int
    scale: float


@dataclass(slots=True)
class Running:
    """A contestant that serves: the processes that are its own (not their children), and what it says of itself."""

    processes: list[subprocess.Popen[bytes]]
    balancer_seconds: float = 0.0  # processor time of what decides weights, where that is not one of the processes
    reloads: int = 0
    peak_draining: int = 0


class Contestant(abc.ABC):
    """One way to balance requests.

    Attributes:
        name: what tables and `--only` call it.
        label: what it is, in one line.
        real_time: it cannot carry a run that is faster than life.
    """

    name: str
    label: str
    real_time: bool = False

    def missing(self) -> str | None:
        """Say why it cannot run on this machine, or return None."""
        return None

    @abc.abstractmethod
    def serve(self, site: Site) -> AbstractContextManager[Running]:
        """Start it, wait until it serves requests, and stop it at the end.

        Raises:
            ContestantError: it did not come up.
        """


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
            raise ContestantError(f"{what}: not so within {START_SECONDS} s: " + " | ".join(tail))
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


def script_config(site: Site, policy: str, *, known: bool = False) -> dict[str, Any]:
    """Return what the script's configuration has in common, times that decide weights scaled as the model's are.

    `known`: the operator has set what each node can do.
    """
    return {
        "state_directory": str(site.directory / "state"),
        "scrape": {"timeout_seconds": max(0.5, 5 * site.scale)},
        "health": {"stale_after_seconds": max(1, 180 * site.scale)},
        "pools": [
            {
                "name": "llm_cluster",
                "policy": policy,
                "fail_timeout_seconds": max(1, round(60 * site.scale)),
                "nodes": [
                    {
                        "name": node.name,
                        "host": node.host,
                        "port": node.port,
                        "capacity": node.capacity if known else 1.0,
                    }
                    for node in site.backends
                ],
            }
        ],
    }
