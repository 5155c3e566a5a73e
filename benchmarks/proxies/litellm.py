"""Contestant: the proxy of LiteLLM, with its defaults; its cooldown is scaled."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.contestant import Running, Site
from benchmarks.processes import await_answer, await_condition, started
from benchmarks.proxies.packaged import Packaged

if TYPE_CHECKING:
    from collections.abc import Iterator

# LiteLLM must not use the network: prices, headers and templates are those of the package.
OFFLINE = {
    # Every token of the simulated node is the same word. After 100 equal pieces LiteLLM assumes a model in a loop.
    "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
    "LITELLM_TELEMETRY_DISABLED": "True",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
}


class LiteLlm(Packaged):
    """The proxy of LiteLLM; in its answers the header x-litellm-model-id names the node.

    By default it has no health checks, and leaves out a node that fails for cooldown_time. It listens on loopback
    alone, so a setting lets it start without a master key.
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
