"""Rules across the variables of the role vllm_nginx_lb that config.yml does not show."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from vllm_lb import settings

from .config import DEFAULT_POOL
from .values import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What vllm_nginx_lb_pools may have for a pool
POOL_KEYS = tuple(each.name for each in dataclasses.fields(settings.Pool) if each.name not in ("name", "nodes"))


def rule_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each broken rule.

    Args:
        values: the variables of a host whose types are right.
    """
    if values.get("vllm_nginx_lb_nodes") == []:
        yield "vllm_nginx_lb_nodes is empty; at least 1 node is needed; add one"
    yield from tick_problems(values)
    yield from balancer_problems(values)
    yield from pool_problems(values)


def number(values: Mapping[str, Any], name: str) -> float:
    """Return a variable that is a number; 0 if it has a problem of its own."""
    value = plain(values.get(name, 0), "float")
    return value if isinstance(value, int | float) else 0


def tick_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """A slow tick must be over before the next one."""
    interval, scrape, confirm = (
        f"vllm_nginx_lb_{name}_seconds" for name in ("interval", "scrape_timeout", "confirm_timeout")
    )
    if interval in values and number(values, scrape) + 2 * number(values, confirm) >= number(values, interval) - 1:
        yield (
            f"{scrape} ({values.get(scrape)}) + 2 * {confirm} ({values.get(confirm)}) must be less than {interval} "
            f"({values[interval]}) - 1, so that a slow tick is over before the next one; lengthen the interval or "
            "shorten a timeout"
        )


def balancer_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """The balancer work needs a confirm URL, and reads no template."""
    url, template = values.get("vllm_nginx_lb_confirm_url"), values.get("vllm_nginx_lb_upstream_template_file")
    if values.get("nginx_ingress_balancer", "work") == "work" and (url == "" or template):
        yield (
            f"nginx_ingress_balancer is work, vllm_nginx_lb_confirm_url is {json.dumps(url)} and "
            f"vllm_nginx_lb_upstream_template_file is {json.dumps(template)}; work needs the URL, which alone says "
            "whether new weights are live, and no template, because it reads no upstream; correct them, or set "
            "nginx_ingress_balancer: upstream"
        )


def pool_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings of single pools must be for pools that have nodes, and must be settings of a pool."""
    pools, nodes = values.get("vllm_nginx_lb_pools", {}), values.get("vllm_nginx_lb_nodes", [])
    existing = list(dict.fromkeys(str(node.get("pool", DEFAULT_POOL)) for node in nodes))
    for name, pool in pools.items():
        if not isinstance(pool, dict):
            yield f"vllm_nginx_lb_pools.{name} is {json.dumps(pool, default=str)}; allowed is a mapping; correct it"
        elif unknown := [key for key in pool if key not in POOL_KEYS]:
            yield (
                f"vllm_nginx_lb_pools.{name} has {', '.join(unknown)}; allowed is {', '.join(POOL_KEYS)}; "
                "correct or remove it"
            )
        if nodes and name not in existing:
            yield (
                f"vllm_nginx_lb_pools has settings for {json.dumps(name)}, and no node is in that pool; allowed is "
                f"{', '.join(existing)}; correct or remove it"
            )
    schemes = list(dict.fromkeys(str(node.get("scheme", "http")) for node in nodes))
    if len(schemes) > 1 and any(isinstance(pool, dict) and "models" in pool for pool in pools.values()):
        yield (
            f"vllm_nginx_lb_pools names models, and vllm_scheme is {' and '.join(schemes)}; allowed is one scheme for "
            "the nodes of all pools, because nginx sends their requests through one server; give all nodes the same "
            "vllm_scheme, or remove models"
        )
