"""The simulated node as a process, and what tests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import requests
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 10.0
# SIMULATOR_PYTHON tests the node with another interpreter, and the libraries of an older Debian release.
PYTHON = os.environ.get("SIMULATOR_PYTHON", sys.executable)
FAST = ("--step-ms", "2", "--prefill-token-ms", "0.01", "--decode-sequence-ms", "0.01")
FOREVER = 30_000  # tokens; a request that is still running when its test ends


@dataclass
class SimulatedNode:
    """A running node."""

    process: subprocess.Popen[str]
    port: int
    control_port: int

    @property
    def url(self) -> str:
        """Return where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, *, stream: bool = False, key: str = "") -> requests.Response:
        """Get a path, with a key if one is given."""
        headers = {"Authorization": f"Bearer {key}"} if key else None
        return requests.get(self.url + path, timeout=DEADLINE_SECONDS, stream=stream, headers=headers)

    def control(self, **settings: object) -> dict[str, Any]:
        """Change settings, if any are given, and return the state."""
        url = f"http://127.0.0.1:{self.control_port}/control"
        if settings:
            answer = requests.put(url, json=settings, timeout=DEADLINE_SECONDS)
        else:
            answer = requests.get(url, timeout=DEADLINE_SECONDS)
        assert answer.status_code == 200, answer.text
        state: dict[str, Any] = answer.json()
        return state

    def clear_faults(self) -> dict[str, Any]:
        """End all faults and return the state."""
        url = f"http://127.0.0.1:{self.control_port}/control/faults"
        state: dict[str, Any] = requests.delete(url, timeout=DEADLINE_SECONDS).json()
        return state

    def running(self) -> list[int]:
        """Return the true number of running requests of each engine."""
        return [engine["running"] for engine in self.control()["engines"]]

    def samples(self, name: str) -> list[float]:
        """Return the values of all samples of exactly this name."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return [s.value for family in families for s in family.samples if s.name == name]

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """Return a client that does not retry."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=DEADLINE_SECONDS)

    def complete(self, max_tokens: int = 3) -> str:
        """Return the text of one short completion."""
        with self.client() as client:
            return client.completions.create(model="sim", prompt="hello", max_tokens=max_tokens).choices[0].text


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.02)


@contextmanager
def start_node(*options: str) -> Iterator[SimulatedNode]:
    """Run a node with its own free ports, and end it by its PID."""
    command = [PYTHON, "-m", "simulator", "--port", "0", "--control-port", "0", *FAST, *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            ports = [int(process.stdout.readline().rpartition(":")[2]) for _ in range(2)]
            node = SimulatedNode(process, *ports)
            assert node.get("/health").status_code == 200
            yield node
        finally:
            process.terminate()
            assert process.wait(DEADLINE_SECONDS) == 0


@contextmanager
def open_stream(node: SimulatedNode, max_tokens: int = FOREVER) -> Iterator[Iterator[bytes]]:
    """Start a streamed completion, wait for its first piece and give the others."""
    body = {"prompt": "hello", "max_tokens": max_tokens, "stream": True}
    with requests.post(f"{node.url}/v1/completions", json=body, stream=True, timeout=DEADLINE_SECONDS) as answer:
        pieces: Iterator[bytes] = answer.iter_content(None)
        assert next(pieces).startswith(b"data:")
        yield pieces
