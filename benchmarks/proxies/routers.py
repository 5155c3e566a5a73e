"""Contestants: the router of the vLLM project, and smg.

They keep their defaults. Their intervals and back-off times are scaled as far as an option's unit allows.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.contestant import Running, Site
from benchmarks.processes import await_answer, started
from benchmarks.proxies.packaged import Packaged

if TYPE_CHECKING:
    from collections.abc import Iterator


def whole_seconds(seconds: float, site: Site) -> str:
    """Return seconds of the model as whole real seconds, at least 1: to these options 0 means never."""
    return str(max(1, round(seconds * site.scale)))


class Router(Packaged):
    """vllm-router and smg, which have one ancestor; most of their options are the same.

    Health checks, the circuit breaker and its window take whole seconds: a small scale makes them too long.
    """

    ready: str  # the path that answers with 200 as soon as there are nodes to ask

    def __init__(self, name: str, policy: str, what: str) -> None:
        """Take the name, the router's policy, and what that policy does."""
        self.name, self.policy = name, policy
        self.label = f"{self.package}, {what}"

    def options(self, site: Site) -> tuple[str, ...]:
        """Return further options of the command line."""
        del site
        return ()

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run the router."""
        log = site.directory / f"{self.name}.log"
        command = [
            *self.command(),
            *("--host", "127.0.0.1", "--port", str(site.port)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(site.status_port)),
            *("--policy", self.policy),
            *("--health-check-interval-secs", whole_seconds(60, site)),
            *("--cb-timeout-duration-secs", whole_seconds(60, site)),
            *("--cb-window-duration-secs", whole_seconds(120, site)),
            *("--retry-initial-backoff-ms", str(max(1, round(50 * site.scale)))),
            *("--retry-max-backoff-ms", str(max(1, round(30_000 * site.scale)))),
            *self.options(site),
            *("--worker-urls", *(f"http://{each.host}:{each.port}" for each in site.backends)),
        ]
        with started(command, log, dict(os.environ)) as process:
            await_answer(f"http://127.0.0.1:{site.port}{self.ready}", process, log)
            yield Running([process])


class VllmRouter(Router):
    """The router of the vLLM project.

    `power_of_two` compares its own counts of requests under way. `cache_aware` asks all nodes for the tokens of each
    prompt (/v1/completions/render, /tokenize); if the nodes serve neither, it chooses the one with the fewest requests.
    """

    package = "vllm-router"
    program = ("vllm-router",)
    ready = "/health"  # the router opens its port when it has the nodes


class Smg(Router):
    """Shepherd Model Gateway, the successor of sglang-router, which works with any OpenAI-compatible node.

    `cache_aware` compares the texts of prompts, and leaves a node that has many more requests than the others.
    `least_load` compares what it polls of the nodes' queues and KV caches, and what it has sent since.
    """

    package = "smg"
    program = ("smg", "launch")
    ready = "/readiness"

    def options(self, site: Site) -> tuple[str, ...]:
        """Poll the nodes' loads every 10 s of the model."""
        return "--load-monitor-interval", whole_seconds(10, site)
