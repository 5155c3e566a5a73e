"""Misspelt variables of the project's roles, which Ansible ignores without a message.

The known names come from the roles' argument specs.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from . import specs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

NODE_PREFIX = "vllm_"
# What playbooks/rolling.yml takes with -e: rolling_nodes is vllm_nginx_lb_rolling_nodes, and so on.
ROLLING_PREFIX = "rolling_"
ROLE_OF_ROLLING = "vllm_nginx_lb_"
# Keys of a node in vllm_nginx_lb_nodes that the inventory takes from Ansible's own variables.
NODE_IDENTITY = {"name": "the name of the host in the inventory", "host": "ansible_host"}
# Variables that the example inventory makes from the settings of a node, or that playbooks get with -e.
NODE_OTHERS = ("vllm_node", "vllm_node_name")
# Former variables, and what to do about each
FORMER = {
    "keepalived_peer": "its successor is ingress_peer; copy group_vars/ingress/keepalived.yml of this version",
    "vllm_nginx_lb_balancer": "its successor is nginx_ingress_balancer, which both roles read; remove it",
    "nginx_ingress_work_prefix_bytes": "nginx remembers whole prompts; remove it",
    "nginx_ingress_work_prefix_seconds": "nginx remembers a prompt while its node probably has it cached; remove it",
    "nginx_ingress_work_max_request_kib": "a prompt counts in full, less what its node has cached; remove it",
} | {f"{NODE_PREFIX}{key}": f"its successor is {successor}; remove it" for key, successor in NODE_IDENTITY.items()}
# Former names that copies of the inventory may still set. Nothing reads them, so the check is silent about them.
RETIRED = ("inventory_preflight_host_variables",)

# How similar two texts must be, from 0 to 1, for one to be a misspelling of the other.
SIMILAR = 0.6  # for the rest of a name whose prefix is right
SIMILAR_NODE = 0.7  # the same, for a setting of a node, because many others' variables begin with vllm_
VERY_SIMILAR = 0.8  # for a whole name whose prefix is wrong
ALMOST_EQUAL = 0.9  # for a name that may also be a variable of somebody else


@cache
def known_names() -> dict[str, tuple[str, ...]]:
    """Return the names of all variables, by the prefix that they have in common."""
    options = {f"{role}_": specs.every_option(role) for role in specs.ROLES}
    node_keys = options["vllm_nginx_lb_"]["vllm_nginx_lb_nodes"]["options"]
    known = {prefix: tuple(name for name in found if name.startswith(prefix)) for prefix, found in options.items()}
    settings = sorted(f"{NODE_PREFIX}{key}" for key in node_keys if key not in NODE_IDENTITY)
    own = f"{ROLE_OF_ROLLING}{ROLLING_PREFIX}"
    rolling = tuple(name.removeprefix(ROLE_OF_ROLLING) for name in options[ROLE_OF_ROLLING] if name.startswith(own))
    return {**known, NODE_PREFIX: tuple(settings), ROLLING_PREFIX: rolling}


@cache
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
    similar = SIMILAR_NODE if prefix == NODE_PREFIX else SIMILAR
    return (
        closest(rest, {each: rest_of[each] for each in known[prefix]}, similar)
        or closest(rest, rest_of, ALMOST_EQUAL)
        # vllm_ is also the beginning of a role's prefix, as in vllm_lb_policy.
        or (closest(name, whole, VERY_SIMILAR) if prefix == NODE_PREFIX else None)
    )


def is_known(name: str) -> bool:
    """Tell whether a variable is one of the project's, or one that Ansible or the example inventory has."""
    others = name.startswith(("_", "ansible_")) or name in NODE_OTHERS or name in RETIRED
    return others or name in known_names().get(prefix_of(name), ())


def is_foreign(name: str) -> bool:
    """Tell whether a name begins like a setting of a node, and is similar to none: it may belong to something else."""
    return prefix_of(name) == NODE_PREFIX and not is_known(name) and name not in FORMER and not similar_name(name)


def complaint(name: str) -> str | None:
    """Return what is wrong with the name of a variable, or None. The line does not name the hosts."""
    prefix = prefix_of(name)
    if name in FORMER:
        return f"{name} is not a variable; {FORMER[name]}"
    if is_known(name):
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


def foreign_problem(hosts_of: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """Return the one line about all names that begin like a setting of a node and are similar to none."""
    hosts = list(dict.fromkeys(host for name in names for host in hosts_of[name]))
    return (
        f"{told_hosts(hosts)}: {', '.join(names)} begin with {NODE_PREFIX} and are no settings of a vLLM node; allowed "
        f"are {', '.join(known_names()[NODE_PREFIX])}; correct or remove them, or if they are for something else, set "
        f"inventory_preflight_extra_host_variables: [{', '.join(names)}] in group_vars/all/inventory_preflight.yml"
    )


def misplaced_problems(
    hosts_of: Mapping[str, Sequence[str]], nodes: Collection[str], ingress_hosts: Collection[str]
) -> Iterator[str]:
    """Yield a line for each variable that is set only where nothing reads it.

    Ansible never runs a role for a node, and an ingress host is no node.
    """
    roles = tuple(f"{role}_" for role in ("keepalived", "nginx_ingress", "vllm_nginx_lb"))
    for name, hosts in sorted(hosts_of.items()):
        if name.startswith(roles) and name in known_names()[prefix_of(name)]:
            wrong, right, readers = nodes, ingress_hosts, "ingress hosts"
        elif name in known_names()[NODE_PREFIX]:
            wrong, right, readers = ingress_hosts, nodes, "vLLM nodes"
        else:
            continue
        placed = [host for host in hosts if host in wrong]
        if placed and not any(host in right for host in hosts):
            yield f"{told_hosts(placed)}: {name} is set here, and only {readers} have it; move it to them"


def name_problems(
    hosts_of: Mapping[str, Sequence[str]],
    nodes: Collection[str],
    ingress_hosts: Collection[str],
    extra: Collection[str] = (),
) -> list[str]:
    """Return one line for each variable that is misspelt or misplaced.

    Args:
        hosts_of: by the name of a variable, the hosts that have it, wherever it is set.
        nodes: names of the vLLM nodes.
        ingress_hosts: names of the ingress hosts.
        extra: names of variables that belong to something else.
    """
    others = {name: hosts for name, hosts in hosts_of.items() if name not in extra}
    ours = {*nodes, *ingress_hosts}
    # On other hosts, names with a prefix that is a common word are not ours. What -e sets, our hosts have, too.
    checked = {
        name: hosts
        for name, hosts in others.items()
        if prefix_of(name) not in (NODE_PREFIX, ROLLING_PREFIX) or any(host in ours for host in hosts)
    }
    foreign = [name for name in sorted(checked) if is_foreign(name)]
    lines = [
        f"{told_hosts(checked[name])}: {problem}"
        for name in sorted(checked)
        if name not in foreign and (problem := complaint(name))
    ]
    if foreign:
        lines.append(foreign_problem(checked, foreign))
    return [*lines, *misplaced_problems(checked, nodes, ingress_hosts)]


def hosts_by_variable(names_of: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the hosts that have each variable, from the names of the variables of each host."""
    hosts_of: dict[str, list[str]] = defaultdict(list)
    for host, names in names_of.items():
        for name in names:
            hosts_of[name].append(host)
    return hosts_of


def own_problems(role: str, variables: Iterable[str], extra: Collection[str] = ()) -> list[str]:
    """Return one line for each variable of a host that begins like those of a role, and is none of them."""
    own = sorted(name for name in variables if prefix_of(name) == f"{role}_" and name not in extra)
    return [problem for name in own if (problem := complaint(name))]
