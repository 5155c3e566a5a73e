"""Simulated nodes as processes on addresses of 127.0.0.0/8, all `1 / scale` times as fast as real time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.contestant import Backend, ContestantError
from benchmarks.processes import await_answer

if TYPE_CHECKING:
    from benchmarks.scenario import Event
    from simulator.engine_config import EngineConfig

ROOT = Path(__file__).resolve().parents[1]
PORT, CONTROL_PORT = 18490, 18491
FLAGS = {
    "step_seconds": "--step-ms",
    "prefill_token_seconds": "--prefill-token-ms",
    "decode_sequence_seconds": "--decode-sequence-ms",
}


class SimulatedNode:
    """One node: a process with a control endpoint."""

    def __init__(self, index: int, engine: EngineConfig, speed: float, directory: Path, scale: float) -> None:
        """Prepare; `speed` is a factor on the engine's speed, `scale` real seconds per second of the model."""
        self.index, self.engine, self.speed, self.scale = index, engine, speed, scale
        self.name, self.host = f"node-{index}", f"127.0.0.{index + 2}"
        self.log = directory / f"{self.name}.log"
        self.lost_preemptions = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{self.host}:{PORT}"

    def start(self) -> None:
        """Start the process; await_start waits for it."""
        options = [f"--host={self.host}", f"--port={PORT}", f"--control-port={CONTROL_PORT}", f"--name={self.name}"]
        options += [f"--speed={self.speed / self.scale}", f"--stream-interval={round(1 / self.scale)}"]
        for each in fields(self.engine):
            value = getattr(self.engine, each.name)
            if each.name in FLAGS:
                options.append(f"{FLAGS[each.name]}={value * 1000}")
            elif value is not False:
                flag = "--" + each.name.replace("_", "-")
                options.append(flag if value is True else f"{flag}={value}")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simulator", *options], cwd=ROOT, stdout=output, stderr=output
            )

    def await_start(self) -> None:
        """Wait until it serves.

        Raises:
            ContestantError: it does not.
        """
        if self.process is None:
            raise ContestantError(f"{self.name} was not started")
        await_answer(f"{self.url}/health", self.process, self.log)

    def stop(self) -> None:
        """Kill the process, as a crash does."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def control(self, method: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask its control endpoint, or send it a change; return its answer."""
        request = urllib.request.Request(
            f"http://{self.host}:{CONTROL_PORT}/control",
            method=method,
            data=None if change is None else json.dumps(change).encode(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - an address of 127.0.0.0/8
            return dict(json.load(answer))

    @property
    def preemptions(self) -> int:
        """Preemptions so far, those before a restart too."""
        if self.process is None:
            return self.lost_preemptions
        self.await_start()  # the node may have been restarted a moment ago
        return self.lost_preemptions + sum(int(engine["preemptions"]) for engine in self.control("GET")["engines"])

    def apply(self, event: Event) -> None:
        """Apply an event of a scenario."""
        match event.what:
            case "speed":
                self.speed = event.value
                self.control("PUT", {"speed": event.value / self.scale})
            case "blind":
                fault = {"scope": "metrics", "code": 500} if event.value else None
                self.control("PUT", {"faults": {"status": fault}})
            case "frozen":
                self.control("PUT", {"faults": {"frozen": {"scope": "metrics"} if event.value else None}})
            case "down":
                self.lost_preemptions = self.preemptions
                self.stop()
            case "up":
                self.start()


class Fleet:
    """Several nodes, started together and ended at the end of the context."""

    def __init__(self, engine: EngineConfig, speeds: tuple[float, ...], directory: Path, scale: float) -> None:
        """Prepare nodes with the same engine."""
        self.nodes = [SimulatedNode(i, engine, speed, directory, scale) for i, speed in enumerate(speeds)]
        self.backends = tuple(
            Backend(node.name, node.host, PORT, speed) for node, speed in zip(self.nodes, speeds, strict=True)
        )

    def __enter__(self) -> Self:
        """Start all, and wait until they serve."""
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.await_start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all."""
        for node in self.nodes:
            node.stop()


def in_one_scheduling_group() -> bool:
    """Tell whether this process and its parent share one scheduling group.

    The kernel's autogroup scheduler divides processors among sessions. Everything here runs in the foreground of one
    session, so that no proxy gets a share of its own.
    """
    try:
        return Path("/proc/self/autogroup").read_text() == Path(f"/proc/{os.getppid()}/autogroup").read_text()
    except OSError:  # no autogroup in this kernel
        return True
