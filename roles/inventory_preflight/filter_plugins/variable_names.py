# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""Misspelt variables of the project's roles, which Ansible ignores without a message.

The known names come from the roles' argument specs.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROLES_DIRECTORY = Path(__file__).resolve().parents[2]
ROLES = ("inventory_preflight", "keepalived", "nginx_ingress", "vllm_nginx_lb")
NODE_PREFIX = "vllm_"
# What playbooks/rolling.yml takes with -e.
ROLLING_PREFIX = "rolling_"
ROLLING = (
    *("rolling_batch", "rolling_command", "rolling_force", "rolling_nodes", "rolling_resume"),
    "rolling_serving_ratio",
)
# Keys of a node in vllm_nginx_lb_nodes that the inventory takes from Ansible's own variables.
NODE_IDENTITY = {"name": "the name of the host in the inventory", "host": "ansible_host"}
# Variables that the example inventory makes from the settings of a node, or that playbooks get with -e.
NODE_OTHERS = ("vllm_node", "vllm_node_name")
# Former names and their successors.
SUCCESSORS = {"vllm_nginx_lb_balancer": "nginx_ingress_balancer, which both roles read"} | {
    f"{NODE_PREFIX}{key}": successor for key, successor in NODE_IDENTITY.items()
}

# How similar two texts must be, from 0 to 1, for one to be a misspelling of the other.
SIMILAR = 0.6  # for the rest of a name whose prefix is right
VERY_SIMILAR = 0.8  # for a whole name whose prefix is wrong
ALMOST_EQUAL = 0.9  # for a name that may also be a variable of somebody else


def options_of(role: str) -> dict[str, Any]:
    """Return the options of all entry points of a role, by name."""
    text = (ROLES_DIRECTORY / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    specs = yaml.safe_load(text)["argument_specs"].values()
    return {name: option for spec in specs for name, option in spec.get("options", {}).items()}


@cache
def known_names() -> dict[str, tuple[str, ...]]:
    """Return the names of all variables, by the prefix that they have in common."""
    options = {f"{role}_": options_of(role) for role in ROLES}
    node_keys = options["vllm_nginx_lb_"]["vllm_nginx_lb_nodes"]["options"]
    known = {prefix: tuple(name for name in found if name.startswith(prefix)) for prefix, found in options.items()}
    settings = sorted(f"{NODE_PREFIX}{key}" for key in node_keys if key not in NODE_IDENTITY)
    return {**known, NODE_PREFIX: tuple(settings), ROLLING_PREFIX: ROLLING}


def prefix_of(name: str) -> str:
    """Return the longest known prefix of a name, or an empty text."""
    return max((prefix for prefix in known_names() if name.startswith(prefix)), key=len, default="")


def closest(text: str, candidates: Mapping[str, str], similarity: float) -> str | None:
    """Return the key of the value that is most similar to a text, if one is similar enough."""
    found = difflib.get_close_matches(text, candidates.values(), n=1, cutoff=similarity)
    return next((key for key, value in candidates.items() if found == [value]), None)


def similar_name(name: str) -> str | None:
    """Return the known name that a misspelt one probably means, if there is one."""
    known = known_names()
    rest_of = {each: each.removeprefix(prefix) for prefix, names in known.items() for each in names}
    whole = {each: each for each in rest_of}
    prefix = prefix_of(name)
    if not prefix:
        return closest(name, whole, ALMOST_EQUAL)
    rest = name.removeprefix(prefix)
    return (
        closest(rest, {each: rest_of[each] for each in known[prefix]}, SIMILAR)
        or closest(rest, rest_of, ALMOST_EQUAL)
        # vllm_ is also the beginning of a role's prefix, as in vllm_lb_policy.
        or (closest(name, whole, VERY_SIMILAR) if prefix == NODE_PREFIX else None)
    )


def complaint(name: str) -> str | None:
    """Return what is wrong with the name of a variable, or None. The line does not name the hosts."""
    prefix = prefix_of(name)
    if name in SUCCESSORS:
        return f"{name} is not a variable; in its place is {SUCCESSORS[name]}; remove {name}"
    if name.startswith(("_", "ansible_")) or name in NODE_OTHERS or name in known_names().get(prefix, ()):
        return None
    guess = similar_name(name)
    if not prefix and guess is None:
        return None  # a variable of somebody else
    remedy = f"did you mean {guess}?" if guess else "correct its name or remove it"
    if prefix == NODE_PREFIX and (guess is None or prefix_of(guess) == NODE_PREFIX):
        allowed = ", ".join(known_names()[NODE_PREFIX])
        return f"{name} is not a setting of a vLLM node; allowed are {allowed}; {remedy}"
    owner = f"the role {prefix.removesuffix('_')}" if prefix and prefix != NODE_PREFIX else "any role"
    if prefix == ROLLING_PREFIX:
        owner = "playbooks/rolling.yml"
    return f"{name} is not a variable of {owner}; docs/configuration.md has all of them; {remedy}"


def told_hosts(hosts: Sequence[str]) -> str:
    """Return the first names of hosts and how many more there are, such as `node-a, node-b and 58 more`."""
    shown = 3
    more = f" and {len(hosts) - shown} more" if len(hosts) > shown else ""
    return ", ".join(hosts[:shown]) + more


def misspelt_variables(host_variables: Mapping[str, Sequence[str]], extra: Sequence[str] = ()) -> list[str]:
    """Return one line for each variable that is similar to a variable of the roles and is none.

    A variable that many hosts have, from a group or from -e, is reported once.

    Args:
        host_variables: the names of all variables of each host, wherever they are set.
        extra: names that are variables of something else.
    """
    hosts_of: dict[str, list[str]] = defaultdict(list)
    for host, names in host_variables.items():
        for name in names:
            hosts_of[name].append(host)
    complaints = ((name, complaint(name)) for name in sorted(hosts_of.keys() - set(extra)))
    return [f"{told_hosts(hosts_of[name])}: {problem}" for name, problem in complaints if problem]


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"misspelt_variables": misspelt_variables}
