"""What others use to balance requests to vLLM nodes: HAProxy, the routers of vLLM and SGLang, and LiteLLM.

Each keeps its defaults, but for limits that would fail requests by design, and for times: intervals of health checks,
back-offs and the like are scaled as the model's time is, as far as an option's unit allows. Limits on how long one
answer may take (of connections, requests, health checks) stay real: this machine has to keep them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contestant import (
    POLITELY,
    Contestant,
    ContestantError,
    Running,
    Site,
    await_answer,
    await_condition,
    find_program,
    script_config,
    started,
)
from benchmarks.haproxy_weights import BACKEND
from benchmarks.scenario import INTERVAL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
# In the site's directory, where HAProxy runs: a whole path may be too long for a socket.
HAPROXY_SOCKET = "haproxy.sock"


# --- HAProxy -----------------------------------------------------------------------------------------


def haproxy_config(site: Site) -> str:
    """Return HAProxy's configuration for a site."""
    interval = 2 * site.scale
    servers = "\n".join(f"    server {each.name} {each.host}:{each.port} check weight 100" for each in site.backends)
    return f"""\
global
    nbthread 2
    stats socket unix@{HAPROXY_SOCKET} mode 600 level admin
    # What does not fit into a buffer is never tried again, and the longest prompts have 60 kB.
    tune.bufsize 131072

defaults
    mode http
    # Else the pieces of a stream wait up to 200 ms for the next one, to fill packets.
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
    # Only a request that has come in full is tried again, and a POST arrives in several pieces.
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
        """Say so if HAProxy is not installed."""
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
        command = [*POLITELY, sys.executable, "-m", "benchmarks.haproxy_weights", "--config", str(config)]
        command += ["--socket", HAPROXY_SOCKET, "--interval", str(INTERVAL_SECONDS * site.scale)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'files'}{os.pathsep}{ROOT}"}
        with super().serve(site) as running, started(command, log, environment) as balancer:
            memory = site.directory / "state" / "memory.json"
            await_condition(memory.exists, "the script sets weights", balancer, log)
            running.processes.append(balancer)
            yield running
            if balancer.poll() is not None:
                raise ContestantError("the script's loop ended: " + log.read_text(errors="replace")[-500:])


# --- What comes from PyPI ------------------------------------------------------------------------------


def environment_of(package: str) -> Path:
    """Return the virtual environment of a package."""
    return ROOT / ".cache" / "bench" / package


@functools.cache
def install(package: str) -> str | None:
    """Make the virtual environment of a package unless it is there; return why that failed, in one line.

    Once: a failure is not tried again for the next contestant of the same package.
    """
    requirements, directory = ROOT / "requirements" / f"bench-{package}.txt", environment_of(package)
    made = directory / ".made"
    try:
        wanted = requirements.read_text()
        if made.exists() and made.read_text() == wanted:
            return None
        print(f"Installing {package} into {directory.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run(
            [ROOT / "tools" / "make-venv", directory, requirements],
            env=os.environ | {"PYTHON": sys.executable},
            check=True,
            capture_output=True,
            text=True,
        )
        made.write_text(wanted)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no output"]
        why = next((line for line in said if line.startswith("ERROR")), said[-1])
        return f"{package} cannot be installed: {why}"
    except OSError as error:
        return f"{package} cannot be installed: {error}"
    return None


def whole_seconds(seconds: float, site: Site) -> str:
    """Return seconds of the model in real ones, for an option that takes whole seconds, of which 0 is none."""
    return str(max(1, round(seconds * site.scale)))


class Packaged(Contestant):
    """A contestant that is a package of PyPI, in a virtual environment of its own.

    Attributes:
        package: its name there.
        program: the words that start it; the first is a program of its virtual environment.
    """

    package: str
    program: tuple[str, ...]

    def missing(self) -> str | None:
        """Install it, and say why that failed."""
        return install(self.package)

    def command(self) -> list[str]:
        """Return the words that start it, with the path."""
        return [str(environment_of(self.package) / "bin" / self.program[0]), *self.program[1:]]


class Router(Packaged):
    """vllm-router and its parent sglang-router, which still have most options in common.

    Health checks, the circuit breaker and its window take whole seconds: a small scale makes them longer than life.
    """

    ready: str  # the path that answers with 200 as soon as there are nodes to ask

    def __init__(self, name: str, policy: str, what: str) -> None:
        """Take the name, the router's policy, and what that policy does."""
        self.name, self.policy = name, policy
        self.label = f"{self.package}, {what}"

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
            *("--worker-urls", *(f"http://{each.host}:{each.port}" for each in site.backends)),
        ]
        with started(command, log, dict(os.environ)) as process:
            await_answer(f"http://127.0.0.1:{site.port}{self.ready}", process, log)
            yield Running([process])


class VllmRouter(Router):
    """The router of the vLLM project.

    `power_of_two` compares its own counts of requests under way. `cache_aware` asks all nodes for the tokens of each
    prompt (/v1/completions/render, /tokenize); of nodes that serve neither it takes the one with the fewest requests.
    """

    package = "vllm-router"
    program = ("vllm-router",)
    ready = "/health"  # it opens its port when the nodes are there


class SglangRouter(Router):
    """The router of the SGLang project, of which it takes any OpenAI-compatible node.

    `cache_aware` works with any, by the text of the prompts. `power_of_two` is a random choice here: it counts no
    requests of its own (only `cache_aware` does), and the loads it compares are what SGLang serves at /get_load.
    """

    package = "sglang-router"
    program = ("python", "-m", "sglang_router.launch_router")
    ready = "/readiness"


class LiteLlm(Packaged):
    """The proxy of LiteLLM; in its answers the header x-litellm-model-id names the node.

    It has no health checks by default: a node that fails is out for cooldown_time. Without a master key it starts only
    when told so; it listens on loopback alone.
    """

    package = "litellm"
    program = ("litellm",)
    real_time = True

    def __init__(self, name: str, strategy: str, workers: int) -> None:
        """Take the name, the routing strategy, and how many processes serve."""
        self.name, self.strategy, self.workers = name, strategy, workers
        self.label = f"LiteLLM proxy, {strategy}, {workers} worker{'s' * (workers > 1)}"

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run the proxy, and wait for all of its workers."""
        config, log = site.directory / "litellm.yaml", site.directory / f"{self.name}.log"
        config.write_text(json.dumps(self.proxy_config(site)))
        command = [
            *self.command(),
            *("--config", str(config), "--num_workers", str(self.workers)),
            *("--host", "127.0.0.1", "--port", str(site.port)),
        ]
        with started(command, log, os.environ | OFFLINE) as process:
            ready = "Application startup complete"
            await_condition(
                lambda: log.read_text(errors="replace").count(ready) >= self.workers, "all workers serve", process, log
            )
            await_answer(f"http://127.0.0.1:{site.port}/health/liveliness", process, log)
            yield Running([process])

    def proxy_config(self, site: Site) -> dict[str, object]:
        """Return the proxy's configuration; JSON is YAML."""
        return {
            "model_list": [
                {
                    "model_name": "sim",
                    "litellm_params": {
                        "model": "openai/sim",
                        "api_base": f"http://{each.host}:{each.port}/v1",
                        "api_key": "dummy",
                    },
                    "model_info": {"id": each.name},
                }
                for each in site.backends
            ],
            "router_settings": {"routing_strategy": self.strategy, "cooldown_time": 5 * site.scale},
            "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        }


# Nothing is reported, and nothing fetched: prices, headers and templates are those in the package.
OFFLINE = {
    # The simulated node says "word" for each token, which LiteLLM takes for a model in a loop after 100 of them.
    "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
    "LITELLM_TELEMETRY_DISABLED": "True",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
}

PEERS: tuple[Contestant, ...] = (
    HaproxyLeastconn(),
    HaproxyWeights(),
    VllmRouter("vllm-router", "cache_aware", "cache_aware (its default)"),
    VllmRouter("vllm-router-power-of-two", "power_of_two", "power_of_two"),
    VllmRouter("vllm-router-round-robin", "round_robin", "round_robin"),
    SglangRouter("sglang-router", "cache_aware", "cache_aware (its default)"),
    SglangRouter("sglang-router-power-of-two", "power_of_two", "power_of_two, random without SGLang's loads"),
    LiteLlm("litellm", "simple-shuffle", 2),
    # It counts the requests of one process.
    LiteLlm("litellm-least-busy", "least-busy", 1),
)
