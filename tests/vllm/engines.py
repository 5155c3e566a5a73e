"""Real vLLM engines as processes, with a small model, on the CPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SERVE = Path(__file__).with_name("serve.py")
MODEL = "tiny"
MOST_REQUESTS = 16  # running and waiting at one engine; others are refused
START_SECONDS = 400  # half a minute on an idle machine
DEADLINE_SECONDS = 60
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# 24 blocks of 128 tokens: eight requests of 400 tokens or more do not fit, so that some are preempted.
OPTIONS = (
    *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
    *("--max-num-seqs", "8", "--num-gpu-blocks-override", "24"),
)


@dataclass
class Engine:
    """One vLLM server with its engine."""

    name: str
    folder: Path
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / f"{self.name}.log"

    def start(self, *more: str) -> None:
        """Start it, with more options; it is not ready yet."""
        assert PYTHON.exists(), "make test-vllm installs vLLM"
        place = ("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port))
        options = (*place, *OPTIONS, *self.options, *more)
        command: list[str | Path] = [PYTHON, SERVE, "serve", self.folder / "model", *options]
        with self.log.open("ab") as log:
            # Its processes are one group, which stop() ends as a whole.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True
            )

    def await_ready(self) -> None:
        """Wait until it serves."""
        wait_for(self._is_ready, START_SECONDS, every=0.5)

    def restart(self, *more: str) -> None:
        """End it, start it again with more options, and wait until it serves."""
        self.stop()
        self.start(*more)
        self.await_ready()

    def ensure_ready(self) -> None:
        """Start it again if a test has ended it, and wait until it serves."""
        if not self.process or self.process.poll() is not None:
            self.start()
        self.await_ready()

    def _is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=2).status_code == 200
        return False

    def stop(self) -> None:
        """End all of its processes at once."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE_SECONDS)

    def signal_core(self, number: signal.Signals) -> None:
        """Send a signal to the engine alone; its API server lives on."""
        self._core().send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the API server, its engine and all other processes."""
        assert self.process
        os.killpg(self.process.pid, number)

    def _core(self) -> psutil.Process:
        assert self.process
        found = psutil.Process(self.process.pid).children(recursive=True)
        return next(each for each in found if "EngineCore" in " ".join(each.cmdline()))

    def page(self) -> str:
        """Return /metrics."""
        return requests.get(f"{self.url}/metrics", timeout=DEADLINE_SECONDS).text

    def samples(self, name: str) -> list[float]:
        """Return the values of all samples of exactly this name."""
        families = text_string_to_metric_families(self.page())
        return [sample.value for family in families for sample in family.samples if sample.name == name]

    def running(self) -> float:
        """Return the number of running requests that it shows."""
        return sum(self.samples("vllm:num_requests_running"))

    def unfinished(self) -> float:
        """Return the number of requests running and waiting that it shows."""
        return self.running() + sum(self.samples("vllm:num_requests_waiting"))


def body(max_tokens: int, *, stream: bool = False, prompt: str = "hello") -> dict[str, object]:
    """Return a request for exactly so many tokens."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}


def complete(url: str, max_tokens: int = 4) -> requests.Response:
    """Ask for a plain completion."""
    return requests.post(f"{url}/v1/completions", json=body(max_tokens), timeout=DEADLINE_SECONDS)


@contextlib.contextmanager
def open_stream(url: str, max_tokens: int = 1800) -> Iterator[Iterator[bytes]]:
    """Start a streamed completion, wait for its first piece and give the others."""
    request = body(max_tokens, stream=True)
    with requests.post(f"{url}/v1/completions", json=request, stream=True, timeout=DEADLINE_SECONDS) as answer:
        assert answer.status_code == 200, answer.text
        pieces: Iterator[bytes] = answer.iter_content(None)
        assert next(pieces).startswith(b"data: ")
        yield pieces
