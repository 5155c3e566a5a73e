"""The product in front of real engines: nginx with the role's parts, the script every few seconds, and clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import requests

from tests.integration.conftest import SEED, free_port, wait_for
from tests.soak.simulated_site import Node, Site, write_server
from tests.vllm.engines import body

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.vllm.engines import Engine

TICK_SECONDS = 2
PATIENCE_SECONDS = 15  # of a client that waits for an answer


def configure(site: Site) -> None:
    """Write what the script reads."""
    site.config = {
        "state_directory": str(site.directory / "state"),
        "interval_seconds": TICK_SECONDS,
        "nginx": {
            "balancer": site.balancer,
            "upstream_file": str(site.upstream),
            "test_command": [*site.nginx, "-t", "-q"],
            "reload_command": [*site.nginx, "-s", "reload"],
            "confirm_url": f"http://127.0.0.1:{site.status_port}/generation",
            "min_reload_interval_seconds": TICK_SECONDS,
        },
        "pools": [{"name": "llm_cluster", "nodes": site.as_configured()}],
    }


@contextlib.contextmanager
def start_site(directory: Path, engines: Sequence[Engine], balancer: str) -> Iterator[Site]:
    """Start nginx in front of engines, and a tick every few seconds; end both afterwards."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary, "nginx is missing: make system-packages installs it"
    (directory / "upstream").mkdir(parents=True)
    site = Site(directory, [], free_port(), free_port(), binary, balancer=balancer)
    site.machines = {each.name: Node(each.name, "127.0.0.1", each.port, 0) for each in engines}
    configure(site)
    if balancer == "upstream":
        site.upstream.write_text(SEED)
    write_server(site)
    site.write_nginx()
    with contextlib.ExitStack() as running:
        master = running.enter_context(
            subprocess.Popen([*site.nginx, "-g", "daemon off;"], stderr=subprocess.DEVNULL, start_new_session=True)
        )
        running.callback(master.send_signal, signal.SIGTERM)
        wait_for(lambda: master.poll() is None and (directory / "nginx.pid").exists())
        running.enter_context(ticking(site))
        wait_for(lambda: serves(site, len(engines)), 60)
        yield site


def serves(site: Site, nodes: int) -> bool:
    """Tell whether each of nginx's workers uses what the script has published, with so many nodes."""
    with contextlib.suppress(FileNotFoundError):
        wanted = site.status()["generation"]
        # Either worker takes a connection, and each finds a new file by itself.
        return len(site.rotation()) == nodes and all(site.generation() == wanted for _ in range(40))
    return False


@contextlib.contextmanager
def ticking(site: Site) -> Iterator[None]:
    """Run the script every few seconds."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.is_set():
            site.script("run")
            ended.wait(TICK_SECONDS)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def url(site: Site) -> str:
    """Return where clients ask."""
    return f"http://127.0.0.1:{site.ingress_port}"


@dataclass
class Answer:
    """What a client got: a status, 0 for none, and whether the answer was whole; seconds since the test began."""

    began: float
    ended: float
    status: int
    whole: bool
    says: str

    @property
    def good(self) -> bool:
        """Whether the client has what it asked for."""
        return self.status == 200 and self.whole


def ask(site: Site, number: int, max_tokens: int, patience_seconds: float = PATIENCE_SECONDS) -> Answer:
    """Send one request, every other one streamed, and never raise."""
    stream, began = bool(number % 2), time.monotonic()
    status, whole, says = 0, False, ""
    try:
        request = body(max_tokens, stream=stream, prompt=f"hello {number}")
        with requests.post(f"{url(site)}/v1/completions", json=request, timeout=patience_seconds) as answer:
            status, says = answer.status_code, answer.text
            end = '"finish_reason":"length"'
            whole = end in says.replace(": ", ":") and (not stream or says.endswith("data: [DONE]\n\n"))
    except requests.RequestException as error:
        says = type(error).__name__
    return Answer(began, time.monotonic(), status, whole, says)


@dataclass
class Clients:
    """Clients that ask one request after the other until they are stopped."""

    site: Site
    count: int = 3
    max_tokens: int = 20
    answers: list[Answer] = field(default_factory=list)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Clients]:
        """Ask while the block runs, and let what is under way end."""
        ended = threading.Event()

        def client(first: int) -> None:
            number = first
            while not ended.is_set():
                self.answers.append(ask(self.site, number, self.max_tokens))
                number += self.count
                ended.wait(0.05)

        with ThreadPoolExecutor(self.count) as pool:
            for first in range(self.count):
                pool.submit(client, first)
            try:
                yield self
            finally:
                ended.set()

    def good(self) -> int:
        """Count the good answers."""
        return sum(answer.good for answer in list(self.answers))

    def await_good(self, more: int, seconds: float = 60) -> None:
        """Wait for so many more good answers."""
        wanted = self.good() + more
        wait_for(lambda: self.good() >= wanted, seconds)

    def failed(self) -> list[Answer]:
        """Return the answers that were not good."""
        return [answer for answer in list(self.answers) if not answer.good]

    def told(self) -> str:
        """Return in one line what failed, and for how long."""
        failed = self.failed()
        kinds = sorted({f"{answer.status or answer.says}" for answer in failed})
        spread = max(each.ended for each in failed) - min(each.began for each in failed) if failed else 0.0
        return f"{len(failed)} of {len(self.answers)} failed {kinds} within {spread:.1f} s"
