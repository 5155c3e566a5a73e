"""The checks of the inventory as a whole: nodes, pools and ingress hosts, in words that name the fix.

The rules of a single node are those of config.yml: the package of the script declares them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, get_type_hints

from vllm_lb import schema, settings
from vllm_lb.addresses import canonical, is_host

from .values import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Node = dict[str, Any]

SOUND_NODE = {"name": "node", "host": "node"}
TYPES = {bool: "bool", int: "int", float: "float", str: "str"}
KINDS = {name: TYPES[kind] for name, kind in get_type_hints(settings.Node).items()}
# What to do about a wrong value, if "correct" and the name of the variable are not enough.
HINTS = {
    "host": " (an IPv6 address has no brackets and no zone; the port belongs in vllm_port)",
    "capacity": " (1.0 is the usual node; to take a node out, set vllm_drain: true)",
    "max_conns": " (0 is any number)",
}


def node_value(node: Node, key: str) -> object:
    """Return a value of a node, or the default of config.yml."""
    default = next(each.default for each in dataclasses.fields(settings.Node) if each.name == key)
    return plain(node.get(key, default), KINDS[key])


def allowed(record: type, key: str) -> str:
    """Return the words of config.yml for what a field of a dataclass allows."""
    words = next(each.metadata.get("allowed") for each in dataclasses.fields(record) if each.name == key)
    return str(words or schema.WORDS[get_type_hints(record)[key]])


def fits(record: type, values: Mapping[str, Any]) -> bool:
    """Tell whether config.yml accepts the values for a dataclass."""
    problems: list[str] = []
    schema.build(record, values, "", problems)
    return not problems


def check_ingresses(ingress_hosts: Sequence[str]) -> Iterator[str]:
    """At least one ingress host must exist."""
    if not ingress_hosts:
        yield (
            "inventory: there is no ingress host; at least 1 is needed; "
            "add the host that is to run nginx to the ingress group"
        )


def check_nodes_exist(nodes: Sequence[Node]) -> Iterator[str]:
    """At least one node must exist."""
    if not nodes:
        yield "inventory: there is no vLLM node; at least 1 is needed; add one line per node to the vLLM group"


def check_name(node: Node) -> Iterator[str]:
    """A node's name must be fit for nginx's files and metric labels."""
    name = str(node.get("name", ""))
    if not fits(settings.Node, {**SOUND_NODE, "name": name}):
        yield (
            f"{name!r}: the inventory name of this vLLM node is not usable; allowed are "
            f"{allowed(settings.Node, 'name')}; rename the host (its address belongs in ansible_host)"
        )


def check_settings(node: Node) -> Iterator[str]:
    """Each setting of a node must be one that config.yml accepts."""
    for key, kind in KINDS.items():
        value, variable = node.get(key), "ansible_host" if key == "host" else f"vllm_{key}"
        if key == "name" or (key not in node and key != "host"):
            continue
        if key == "host" and value in ("", None):
            yield (
                f"{node.get('name')}: ansible_host is not set; allowed is {allowed(settings.Node, key)}; "
                "add ansible_host to the host's line"
            )
        elif not fits(settings.Node, {**SOUND_NODE, key: plain(value, kind)}):
            yield (
                f"{node.get('name')}: {variable} is {value!r}; allowed is {allowed(settings.Node, key)}; "
                f"correct {variable}{HINTS.get(key, '')}"
            )


def check_pool(node: Node) -> Iterator[str]:
    """A pool's name must be fit as the name of an nginx upstream."""
    pool = node.get("pool")
    if not fits(settings.Pool, {"name": pool, "nodes": [SOUND_NODE]}):
        yield (
            f"{node.get('name')}: vllm_pool is {pool!r}; allowed is {allowed(settings.Pool, 'name')}; correct vllm_pool"
        )


NODE_CHECKS: tuple[Callable[[Node], Iterator[str]], ...] = (check_name, check_settings, check_pool)


def check_duplicate_names(nodes: Sequence[Node]) -> Iterator[str]:
    """No two nodes may have one name, which identifies a node in state, status and metrics."""
    for name, count in Counter(str(node.get("name")) for node in nodes).items():
        if count > 1:
            yield f"{name}: {count} nodes have this name; allowed is 1; rename all but one"


def check_duplicate_addresses(nodes: Sequence[Node]) -> Iterator[str]:
    """No two nodes may be one server: nginx would accept both and double the server's share."""
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    for node in nodes:
        host, port = str(node.get("host", "")), node_value(node, "port")
        if is_host(host) and isinstance(port, int):
            owners[canonical(host), port].append(str(node.get("name")))
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
    """All nodes of a pool must have one scheme, because nginx uses one for an upstream."""
    for pool, members in nodes_by_pool(nodes).items():
        used: dict[str, list[str]] = defaultdict(list)
        for node in members:
            used[str(node_value(node, "scheme"))].append(str(node.get("name")))
        if {"http", "https"} <= used.keys():
            told = "; ".join(f"{scheme} on {', '.join(used[scheme])}" for scheme in ("http", "https"))
            yield (
                f"pool {pool}: vllm_scheme differs ({told}); allowed is one scheme per pool; "
                "give all its nodes the same vllm_scheme, or the others a vllm_pool of their own"
            )


def check_pool_drained(nodes: Sequence[Node]) -> Iterator[str]:
    """Each pool must have a node that is not drained."""
    for pool, members in nodes_by_pool(nodes).items():
        if all(node_value(node, "drain") is True for node in members):
            names = ", ".join(str(node.get("name")) for node in members)
            yield (
                f"pool {pool}: vllm_drain is true on all of its nodes ({names}); at least 1 must take requests; "
                "set vllm_drain: false on one of them"
            )


def check_pool_case(nodes: Sequence[Node]) -> Iterator[str]:
    """Jinja's filter `unique` ignores case; Lua finds pools by their exact names."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for pool in nodes_by_pool(nodes):
        spellings[pool.lower()].append(pool)
    for names in spellings.values():
        if len(names) > 1:
            yield (
                f"vllm_pool has the values {', '.join(sorted(names))}; allowed are names that differ in more than "
                "upper and lower case; spell one pool in one way"
            )


def check_ingress_pools(nodes: Sequence[Node], ingress_pools: Mapping[str, str]) -> Iterator[str]:
    """Each ingress host's pool must have nodes, because nginx does not start without its upstream."""
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
    *,
    unreadable: bool = False,
) -> list[str]:
    """Return one line per problem of an inventory; an empty list means that it is sound.

    Args:
        nodes: The vLLM nodes; each a dict with name, host, pool and any setting of a node in config.yml.
        ingress_hosts: Names of the hosts that run nginx.
        ingress_pools: The pool each ingress host forwards to.
        unreadable: Whether nodes are missing because their variables cannot be evaluated.
    """
    return [
        *check_ingresses(ingress_hosts),
        *(() if unreadable else check_nodes_exist(nodes)),
        *(line for node in nodes for check in NODE_CHECKS for line in check(node)),
        *check_duplicate_names(nodes),
        *check_duplicate_addresses(nodes),
        *check_pool_schemes(nodes),
        *check_pool_case(nodes),
        *(() if unreadable else check_pool_drained(nodes)),
        *(() if unreadable else check_ingress_pools(nodes, ingress_pools or {})),
    ]


def forgotten_settings(nodes: Sequence[Node], variables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each setting that hosts have, and that vllm_node of an older inventory does not pass on."""
    hosts_of: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        name = str(node.get("name"))
        for key in KINDS:
            if key not in node and f"vllm_{key}" in variables.get(name, {}):
                hosts_of[f"vllm_{key}"].append(name)
    return [
        f"{hosts[0]}: {variable} is set, here and on {len(hosts) - 1} other node(s), and vllm_node does not pass it "
        "on; copy inventory/group_vars/vllm/vllm.yml of this version into your inventory"
        for variable, hosts in hosts_of.items()
    ]
