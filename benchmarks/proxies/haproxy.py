"""Contestants: HAProxy, with equal weights and with those of the script.

It keeps its defaults but for limits that would fail requests by design. The interval of its health checks is scaled.
Its time limits on connections, requests and checks are not, because this machine has to keep them.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contestant import Contestant, ContestantError, Running, Site
from benchmarks.haproxy_weights import BACKEND
from benchmarks.processes import LOW_PRIORITY, await_answer, await_condition, find_program, started
from benchmarks.proxies.script import script_config
from benchmarks.scenario import INTERVAL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
# Relative to the site's directory, in which HAProxy runs: a whole path may be too long for a socket.
HAPROXY_SOCKET = "haproxy.sock"


def haproxy_config(site: Site) -> str:
    """Return HAProxy's configuration for a site."""
    interval = 2 * site.scale
    servers = "\n".join(f"    server {each.name} {each.host}:{each.port} check weight 100" for each in site.backends)
    return f"""\
global
    nbthread 2
    stats socket unix@{HAPROXY_SOCKET} mode 600 level admin
    # A request that does not fit into a buffer is not tried again, and the longest prompts have 60 kB.
    tune.bufsize 131072

defaults
    mode http
    # Without this option a piece of a stream waits up to 200 ms for the next one, to fill a packet.
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout queue 600s
    timeout check {max(500, round(1000 * interval))}ms

frontend fe
    bind 127.0.0.1:{site.port}
    default_backend {BACKEND}

backend {BACKEND}
    balance leastconn
    http-reuse safe
    # HAProxy tries a request again only if it has received all of it. A POST arrives in several pieces.
    option http-buffer-request
    retries 2
    retry-on conn-failure empty-response 503
    option redispatch
    option httpchk GET /health
    default-server inter {max(1, round(1000 * interval))}ms
{servers}
"""


class HaproxyLeastconn(Contestant):
    """HAProxy with equal weights: each request goes to the node with the fewest."""

    name = "haproxy-leastconn"
    label = "HAProxy, leastconn, equal weights"

    def missing(self) -> str | None:
        """Return a message if HAProxy is not installed."""
        return None if find_program("haproxy") else "haproxy is not installed: tools/system-packages bench"

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run HAProxy in the foreground."""
        config, log = site.directory / "haproxy.cfg", site.directory / "haproxy.log"
        config.write_text(haproxy_config(site))
        with started(
            [find_program("haproxy") or "haproxy", "-db", "-f", str(config)], log, dict(os.environ)
        ) as process:
            await_answer(f"http://127.0.0.1:{site.port}/health", process, log)
            yield Running([process])


class HaproxyWeights(HaproxyLeastconn):
    """HAProxy with weights that the script decides and sets at runtime, without reloads.

    Its processes are HAProxy and, second, what decides.
    """

    name = "haproxy-weights"

    def __init__(self, policy: str = "capacity") -> None:
        """Take the script's policy."""
        self.policy = policy
        self.label = f"HAProxy, leastconn, weights of the policy {policy} set at runtime"

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run HAProxy and the script's loop, and wait for its first weights."""
        config, log = site.directory / "config.yml", site.directory / "haproxy_weights.log"
        config.write_text(json.dumps(script_config(site, self.policy)))
        command = [*LOW_PRIORITY, sys.executable, "-m", "benchmarks.haproxy_weights", "--config", str(config)]
        command += ["--socket", HAPROXY_SOCKET, "--interval", str(INTERVAL_SECONDS * site.scale)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'files'}{os.pathsep}{ROOT}"}
        with super().serve(site) as running, started(command, log, environment) as balancer:
            memory = site.directory / "state" / "memory.json"
            await_condition(memory.exists, "the script sets weights", balancer, log)
            running.processes.append(balancer)
            yield running
            if balancer.poll() is not None:
                raise ContestantError("the script's loop ended: " + log.read_text(errors="replace")[-500:])
