# SPDX-License-Identifier: Apache-2.0
"""The commands `drain` and `undrain`: names in drained.json, which the next tick reads."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.text import quoted

if TYPE_CHECKING:
    from vllm_lb.settings import Config, Pool
    from vllm_lb.state import State


def drain_command(config: Config, state: State, name: str, *, drain: bool, as_json: bool) -> None:
    """Drain a node until `undrain`; with `drain` False, undrain it."""
    drained = state.drained()
    pool = next((pool for pool in config.pools if name in [node.name for node in pool.nodes]), None)
    was_removed = pool is None and not drain and name in drained  # drained, and then removed from config.yml
    if pool is None and not was_removed:
        known = ", ".join(node.name for each in config.pools for node in each.nodes)
        raise FailureError(FailureCause.NODE_UNKNOWN, f"no node {quoted(name)}: expected one of {known}", EXIT_USAGE)
    if drain and pool and not others_that_serve(pool, name, state, drained):
        problem = f"{name} is the last node of pool {pool.name} that serves: undrain or mend another one first"
        raise FailureError(FailureCause.LAST_NODE, problem)
    changed = drain != (name in drained)
    if changed:
        state.write_drained(drained ^ {name})
    if as_json:
        print(json.dumps({"node": name, "drained": drain, "changed": changed}))
    elif changed:
        print(f"{name} {'drained' if drain else 'undrained'}; the next tick makes it live, requests under way finish")
    else:
        print(f"{name} is {'already' if drain else 'not'} drained")


def others_that_serve(pool: Pool, name: str, state: State, drained: set[str]) -> set[str]:
    """Return the nodes of a pool besides `name` that are neither drained nor down, as of the last tick."""
    out = {node.name for node in pool.nodes if node.drain} | drained | {name}
    with contextlib.suppress(FileNotFoundError, FailureError):
        out |= {node.name for each in state.status().pools for node in each.nodes if node.state == "down"}
    return {node.name for node in pool.nodes} - out
