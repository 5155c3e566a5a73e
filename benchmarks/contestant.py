"""What every contestant of the real-time benchmark has in common."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from contextlib import AbstractContextManager
    from pathlib import Path


class ContestantError(Exception):
    """A contestant, a node or a tool of the benchmark could not be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One simulated node: its address, and its capacity as a factor on that of a node of full speed (0.01 to 100)."""

    name: str
    host: str
    port: int
    capacity: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a contestant runs.

    Attributes:
        directory: for its files and logs; empty, and removed after the run.
        backends: the nodes that it balances.
        port: where it must serve /v1, on 127.0.0.1.
        status_port: one more free port of 127.0.0.1, for what it needs.
        scale: real seconds per second of the model; 0.1 makes a run ten times as fast as real time.
    """

    directory: Path
    backends: tuple[Backend, ...]
    port: int
    status_port: int
    scale: float


@dataclass(slots=True)
class Running:
    """A contestant that serves.

    Attributes:
        processes: its own ones, without their children.
        balancer_seconds: processor time of the program that decides weights, if it is none of the processes.
        reloads: reloads of nginx so far.
        peak_draining: most sets of old workers that had requests at one time.
    """

    processes: list[subprocess.Popen[bytes]]
    balancer_seconds: float = 0.0
    reloads: int = 0
    peak_draining: int = 0


class Contestant(abc.ABC):
    """One way to balance requests.

    Attributes:
        name: the contestant's name in tables and for `--only`.
        label: a description in one line.
        real_time: whether the contestant is too slow for a run that is faster than real time.
    """

    name: str
    label: str
    real_time: bool = False

    def missing(self) -> str | None:
        """Return why the contestant cannot run on this machine, or None."""
        return None

    @abc.abstractmethod
    def serve(self, site: Site) -> AbstractContextManager[Running]:
        """Start the contestant, wait until it serves requests, and stop it at the end.

        Raises:
            ContestantError: it did not come up.
        """
