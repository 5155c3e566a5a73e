# SPDX-License-Identifier: Apache-2.0
"""The commands `check-config` and `run --dry-run`: what the configuration and the next tick would do."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import yaml

from vllm_lb.collect import scrape_and_decide
from vllm_lb.decide import decide
from vllm_lb.nginx import Nginx
from vllm_lb.observation import Sample
from vllm_lb.render import difference, source_of
from vllm_lb.view.fleet import rows_of
from vllm_lb.view.table import held_pools, table_of_nodes

if TYPE_CHECKING:
    from vllm_lb.settings import Config
    from vllm_lb.state import State

ANY_ADDRESS = "192.0.2.1"  # stands for every node that has a name: a documentation address (RFC 5737)


def check_config_command(config: Config) -> None:
    """Print the effective configuration. It has the paths of key files, never a key."""
    samples = {node.name: Sample(ANY_ADDRESS, 0.0, error="-") for pool in config.pools for node in pool.nodes}
    pools, _ = decide(config, samples, {}, set(), 0.0)
    source_of(config, pools).render()  # finds a faulty template now, not in the next tick
    print(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False), end="")


def dry_run(config: Config, state: State) -> None:
    """Print what a tick would decide, and the difference it would make to the published file."""
    plan = scrape_and_decide(config, state).plan
    held = held_pools(plan.pools)
    print(*table_of_nodes(rows_of(plan.pools, {}), time.time()), *(["", *held] if held else []), "", sep="\n")
    wanted = source_of(config, plan.pools).render()
    lines = difference(Nginx(config.nginx).read(), wanted.content)
    print("\n".join(lines) or "The upstream file would not change.")
