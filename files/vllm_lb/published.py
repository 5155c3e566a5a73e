# SPDX-License-Identifier: Apache-2.0
"""The record of a published file: what went into it, kept as data beside it.

A file is compared with another one by its record, never by reading it back. The record has the SHA-256 of the file:
a file that somebody has edited has no record.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any

from vllm_lb.addresses import bracketed
from vllm_lb.data import data
from vllm_lb.plan import PoolPlan
from vllm_lb.schema import build, number, text
from vllm_lb.settings import MAX_WEIGHT, Config
from vllm_lb.text import sha256

SEED = "seed"  # the generation of the file that the role nginx_ingress makes; it serves nobody
DIGEST = r"[0-9a-f]{64}"
# nginx refuses an upstream without any server.
NO_SERVER = {"name": "no address is known", "address": "127.0.0.1", "port": 9, "weight": 0, "max_conns": 0}


@data(kw_only=True)
class Record:
    """What a published file contains."""

    version: int = number(1, 1, 1)
    generation: str = text(r"[0-9a-z]{1,64}", "a generation")
    sha256: str = text(DIGEST, "a SHA-256")  # of the file
    membership: str = text(DIGEST, "a SHA-256")  # of all but the weights of nodes in rotation
    weights: dict[str, dict[str, int]]  # by pool and node, in the order of the file

    def is_of(self, content: str) -> bool:
        """Tell whether this is the record of a file with that content."""
        return self.sha256 == sha256(content)

    def to_json(self) -> str:
        """Return the record as it is stored."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def record_of_json(raw: Any) -> Record | None:
    """Return a stored record, or None if it is damaged."""
    built = build(Record, raw, "record", [])
    return None if built is MISSING else built


def largest_change(before: Record, after: Record) -> float:
    """Return the largest relative change of a weight; 0.5 is a change by half.

    The two records have the same membership.
    """
    old = [weight for nodes in before.weights.values() for weight in nodes.values()]
    new = [weight for nodes in after.weights.values() for weight in nodes.values()]
    if len(old) != len(new):
        return math.inf
    return max((abs(b - a) / max(1, a) for a, b in zip(old, new, strict=True)), default=math.inf)


def differing_weights(
    config: Config, pools: Sequence[PoolPlan], record: Record | None
) -> dict[str, dict[str, int]] | None:
    """Return the live weight, by pool and node, of each node whose decided weight is another one.

    `pools` are the decision; `record` describes the file that nginx serves. A node that is only in the record was
    removed from config.yml. A node that is only in the decision has the live weight 0. None: it is not known what nginx
    serves, or nothing was decided.
    """
    if record is None or not pools or not record.weights:
        return None
    units = {pool.name: unit_of(pool.method, for_lua=config.nginx.balancer == "work") for pool in config.pools}
    decided = {pool.name: {node.name: node.weight for node in pool.nodes} for pool in pools}
    found = {}
    for name in {**decided, **record.weights}:
        unit, wanted, live = units.get(name, 1), decided.get(name, {}), record.weights.get(name, {})
        found[name] = {
            node: min(MAX_WEIGHT, live.get(node, 0) * unit)
            for node in {**wanted, **live}
            if live.get(node, 0) != math.ceil(wanted.get(node, 0) / unit)
        }
    return {name: nodes for name, nodes in found.items() if nodes}


def pools_to_publish(config: Config, pools: Sequence[PoolPlan]) -> list[dict[str, Any]]:
    """Return what the upstream template sees as `pools`: each pool's settings and its `servers`.

    A node whose name never resolved is left out.
    """
    for_lua = config.nginx.balancer == "work"
    published = []
    for planned, pool in zip(pools, config.pools, strict=True):
        servers = [
            {
                "name": node.name,
                "address": bracketed(at.address),
                "port": node.port,
                "weight": at.weight,
                "max_conns": node.max_conns,
            }
            | ({"state": at.state} if for_lua else {})  # in upstream.conf a change of state would be a reload
            for at, node in zip(planned.nodes, pool.nodes, strict=True)
            if at.address
        ]
        settings = {each.name: getattr(pool, each.name) for each in dataclasses.fields(pool) if each.name != "nodes"}
        published.append(settings | {"servers": servers or ([] if for_lua else [NO_SERVER])})
    return published


def generation_for(pools: list[dict[str, Any]], template: str) -> str:
    """Return the generation of a file: a hash of all that goes into it, known before it is rendered."""
    return sha256(json.dumps([pools, template]))[:16]


def record_for(pools: list[dict[str, Any]], template: str, content: str) -> Record:
    """Return the record of a file that was rendered from `pools` and `template`."""
    members = [
        pool | {"servers": [server | {"weight": server["weight"] > 0} for server in pool["servers"]]} for pool in pools
    ]
    weights = {
        pool["name"]: {
            server["name"]: math.ceil(server["weight"] / unit_of(pool["method"], for_lua=not template))
            for server in pool["servers"]
        }
        for pool in pools
    }
    return Record(
        generation=generation_for(pools, template),
        sha256=sha256(content),
        membership=sha256(json.dumps([members, template])),
        weights=weights,
    )


def unit_of(method: str, *, for_lua: bool) -> int:
    """Return what 1 stands for in a published file: upstream.conf.j2 writes a tenth with consistent_hash."""
    return 10 if method == "consistent_hash" and not for_lua else 1
