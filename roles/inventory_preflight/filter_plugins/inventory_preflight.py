# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""The checks of the role inventory_preflight: what single values cannot show, in words that name the fix."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Node = dict[str, Any]

NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
POOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
HOSTNAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*")
SCHEMES = ("http", "https")
CAPACITY_RANGE = (0.01, 100.0)
# Spellings that Ansible's bool filter reads, so that a quoted "yes" works and a typing slip does not.
TRUE = {"true", "yes", "on", "1", "y", "t"}
FALSE = {"false", "no", "off", "0", "n", "f"}


def as_integer(value: object) -> int | None:
    """Return a whole number given as such or as text (ansible-core 2.16 makes text of it), else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    return None


def as_number(value: object) -> float | None:
    """Return a finite number given as such or as text, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_boolean(value: object) -> bool | None:
    """Return a truth value given as such or in one of Ansible's spellings, else None."""
    text = str(value).strip().lower()
    if text in TRUE:
        return True
    return False if text in FALSE else None


def as_address(value: object) -> str | None:
    """Return the one spelling of an IP address or host name, or None when nginx could not take it."""
    text = str(value)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        looks_like_ipv4 = re.fullmatch(r"[0-9.]+", text) is not None
        return text.lower() if HOSTNAME.fullmatch(text) and not looks_like_ipv4 else None
    unusable = address.is_unspecified or address.is_multicast or "%" in text
    return None if unusable else str(address)


def check_ingresses(ingress_hosts: Sequence[str]) -> Iterator[str]:
    """There must be somewhere to put nginx."""
    if not ingress_hosts:
        yield (
            "inventory: there is no ingress host; at least 1 is needed; "
            "add the host that is to run nginx to the ingress group"
        )


def check_nodes_exist(nodes: Sequence[Node]) -> Iterator[str]:
    """There must be something to send requests to."""
    if not nodes:
        yield "inventory: there is no vLLM node; at least 1 is needed; add one line per node to the vLLM group"


def check_name(node: Node) -> Iterator[str]:
    """The name stands in nginx's files and in metric labels."""
    name = str(node.get("name", ""))
    if not NAME.fullmatch(name):
        yield (
            f"{name!r}: the inventory name of this vLLM node is not usable; allowed are 1 to 63 of "
            "A-Z a-z 0-9 . _ -; rename the host (its address belongs in ansible_host)"
        )


def check_host(node: Node) -> Iterator[str]:
    """The address stands in nginx's files, and the balancer scrapes it."""
    host = node.get("host", "")
    if host in ("", None):
        yield (
            f"{node.get('name')}: ansible_host is not set; allowed is an IP address or a host name; "
            "add ansible_host to the host's line"
        )
    elif as_address(host) is None:
        yield (
            f"{node.get('name')}: ansible_host is {host!r}; allowed is an IP address (IPv6 without brackets or zone) "
            "or a host name, without port or scheme; correct ansible_host (the port belongs in vllm_port)"
        )


def check_port(node: Node) -> Iterator[str]:
    """The port vLLM listens on."""
    port = as_integer(node.get("port"))
    if port is None or not 1 <= port <= 65535:  # noqa: PLR2004 - the range of TCP ports
        yield f"{node.get('name')}: vllm_port is {node.get('port')!r}; allowed is 1 to 65535; correct vllm_port"


def check_scheme(node: Node) -> Iterator[str]:
    """How nginx and the balancer speak to the node."""
    if node.get("scheme") not in SCHEMES:
        yield (
            f"{node.get('name')}: vllm_scheme is {node.get('scheme')!r}; allowed is http or https; correct vllm_scheme"
        )


def check_capacity(node: Node) -> Iterator[str]:
    """How much a node can do, relative to the others."""
    capacity = as_number(node.get("capacity"))
    low, high = CAPACITY_RANGE
    if capacity is None or not low <= capacity <= high:
        yield (
            f"{node.get('name')}: vllm_capacity is {node.get('capacity')!r}; allowed is a number from {low} to "
            f"{high:g}, 1.0 being the usual node; correct vllm_capacity (to take a node out, set vllm_drain: true)"
        )


def check_max_conns(node: Node) -> Iterator[str]:
    """How many requests nginx may have at the node at once."""
    most = as_integer(node.get("max_conns", 0))
    if most is None or not 0 <= most <= 65535:  # noqa: PLR2004 - what nginx's balancers take
        yield (
            f"{node.get('name')}: vllm_max_conns is {node.get('max_conns')!r}; allowed is 0 (any number) to 65535; "
            "correct vllm_max_conns"
        )


def check_pool(node: Node) -> Iterator[str]:
    """The pool becomes the name of an nginx upstream."""
    pool = node.get("pool")
    if not isinstance(pool, str) or not POOL.fullmatch(pool):
        yield (
            f"{node.get('name')}: vllm_pool is {pool!r}; allowed is a letter, then up to 62 of "
            "A-Z a-z 0-9 _; correct vllm_pool"
        )


def check_drain(node: Node) -> Iterator[str]:
    """Whether a node is to get no new requests."""
    if as_boolean(node.get("drain")) is None:
        yield f"{node.get('name')}: vllm_drain is {node.get('drain')!r}; allowed is true or false; correct vllm_drain"


NODE_CHECKS: tuple[Callable[[Node], Iterator[str]], ...] = (
    check_name,
    check_host,
    check_port,
    check_scheme,
    check_capacity,
    check_max_conns,
    check_pool,
    check_drain,
)


def check_duplicate_names(nodes: Sequence[Node]) -> Iterator[str]:
    """A node's name is its identity in state, status and metrics."""
    for name, count in Counter(str(node.get("name")) for node in nodes).items():
        if count > 1:
            yield f"{name}: {count} nodes have this name; allowed is 1; rename all but one"


def check_duplicate_addresses(nodes: Sequence[Node]) -> Iterator[str]:
    """Nginx accepts the same server twice and doubles its share in silence."""
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    for node in nodes:
        address, port = as_address(node.get("host", "")), as_integer(node.get("port"))
        if address is not None and port is not None:
            owners[address, port].append(str(node.get("name")))
    for (address, port), names in owners.items():
        if len(names) > 1:
            yield (
                f"{', '.join(names)}: ansible_host {address} with vllm_port {port} is given to {len(names)} nodes; "
                "allowed is 1; correct the address or the port, or remove the line that is too much"
            )


def nodes_by_pool(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Return the nodes of each pool, in the order of the inventory."""
    pools: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        pools[str(node.get("pool"))].append(node)
    return pools


def check_pool_schemes(nodes: Sequence[Node]) -> Iterator[str]:
    """Nginx speaks to all nodes of an upstream in one way."""
    for pool, members in nodes_by_pool(nodes).items():
        used = {scheme: [str(n.get("name")) for n in members if n.get("scheme") == scheme] for scheme in SCHEMES}
        if all(used.values()):
            told = "; ".join(f"{scheme} on {', '.join(names)}" for scheme, names in used.items())
            yield (
                f"pool {pool}: vllm_scheme differs ({told}); allowed is one scheme per pool; "
                "give all its nodes the same vllm_scheme, or the others a vllm_pool of their own"
            )


def check_pool_drained(nodes: Sequence[Node]) -> Iterator[str]:
    """A pool without a node that takes requests answers nothing."""
    for pool, members in nodes_by_pool(nodes).items():
        if all(as_boolean(node.get("drain")) for node in members):
            names = ", ".join(str(node.get("name")) for node in members)
            yield (
                f"pool {pool}: vllm_drain is true on all of its nodes ({names}); at least 1 must take requests; "
                "set vllm_drain: false on one of them"
            )


def check_ingress_pools(nodes: Sequence[Node], ingress_pools: Mapping[str, str]) -> Iterator[str]:
    """Nginx does not start with an upstream that is not there."""
    pools = nodes_by_pool(nodes)
    for host, pool in ingress_pools.items():
        if nodes and pool not in pools:
            yield (
                f"{host}: nginx_ingress_pool is {pool!r}, and no node is in it; allowed is one of "
                f"{', '.join(sorted(pools))}; correct nginx_ingress_pool, or set vllm_pool: {pool} on a node"
            )


def preflight_problems(
    nodes: Sequence[Node],
    ingress_hosts: Sequence[str],
    ingress_pools: Mapping[str, str] | None = None,
) -> list[str]:
    """Return one line per problem of an inventory; an empty list means that it is sound.

    Args:
        nodes: The vLLM nodes; each a dict with name, host, port, scheme, capacity, pool and drain.
        ingress_hosts: Names of the hosts that run nginx.
        ingress_pools: The pool each ingress host forwards to.
    """
    return [
        *check_ingresses(ingress_hosts),
        *check_nodes_exist(nodes),
        *(line for node in nodes for check in NODE_CHECKS for line in check(node)),
        *check_duplicate_names(nodes),
        *check_duplicate_addresses(nodes),
        *check_pool_schemes(nodes),
        *check_pool_drained(nodes),
        *check_ingress_pools(nodes, ingress_pools or {}),
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"preflight_problems": preflight_problems}
