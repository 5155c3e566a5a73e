# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""Filters of the role vllm_nginx_lb: how two versions of config.yml differ, and what the closing line says."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Settings = dict[str, Any]

# How many names of nodes a line shows.
SHOWN = 5
# The states of nodes, as status.json has them, in the order of the closing line.
STATES = ("up", "down", "unknown", "drained")


def read(text: str) -> tuple[dict[str, Settings], dict[str, object]]:
    """Return nodes_of and others_of a config.yml that the role wrote: JSON after lines of comments.

    Any other text, such as one that somebody edited, counts as a file without a setting, which the role replaces.
    """
    try:
        settings = json.loads("\n".join(line for line in text.splitlines() if not line.startswith("#")))
        return nodes_of(settings), others_of(settings)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return nodes_of({}), others_of({})


def nodes_of(settings: Settings) -> dict[str, Settings]:
    """Return the nodes of all pools by name, each with its pool."""
    return {
        node["name"]: {**node, "pool": pool["name"]}
        for pool in settings.get("pools", [])
        for node in pool.get("nodes", [])
    }


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and the value of each setting below a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def others_of(settings: Settings) -> dict[str, object]:
    """Return all that is not a node, by path. The schemes of the nodes belong to it: nginx's own files have them."""
    pools = {
        pool["name"]: {key: value for key, value in pool.items() if key != "nodes"}
        | {"schemes": sorted({node.get("scheme", "http") for node in pool.get("nodes", [])})}
        for pool in settings.get("pools", [])
    }
    return dict(flat({**settings, "pools": pools}))


def vllm_nginx_lb_changes(former: str, wanted: str) -> dict[str, list[str]]:
    """Return how one config.yml differs from another.

    Args:
        former: the text of the file on the host; empty where there is none.
        wanted: the text that the inventory makes.

    Returns:
        ``added``, ``removed`` and ``changed``: names of nodes; ``others``: the paths of all other settings that differ.
    """
    nodes_before, others_before = read(former)
    nodes_after, others_after = read(wanted)
    nothing = object()
    return {
        "added": sorted(nodes_after.keys() - nodes_before.keys()),
        "removed": sorted(nodes_before.keys() - nodes_after.keys()),
        "changed": sorted(
            name for name in nodes_before.keys() & nodes_after.keys() if nodes_before[name] != nodes_after[name]
        ),
        "others": sorted(
            path
            for path in others_before.keys() | others_after.keys()
            if others_before.get(path, nothing) != others_after.get(path, nothing)
        ),
    }


def told(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def vllm_nginx_lb_told_changes(changes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what vllm_nginx_lb_changes has found about nodes in words, such as ``added node-d``."""
    return [f"{how} {told(changes[how])}" for how in ("added", "removed", "changed") if changes[how]]


def vllm_nginx_lb_told_states(status: str) -> str:
    """Return how many nodes there are and in which states, of the text of status.json; names of those that are not up.

    For instance ``3 nodes: 2 up, 1 down (node-c)``.
    """
    try:
        nodes = [node for pool in json.loads(status)["pools"] for node in pool["nodes"]]
    except (json.JSONDecodeError, KeyError, TypeError):
        return "no status yet"
    counts = Counter(node["state"] for node in nodes)
    names = {state: told([node["name"] for node in nodes if node["state"] == state]) for state in STATES}
    states = (
        f"{counts[state]} {state}" + (f" ({names[state]})" if state != "up" else "")
        for state in STATES
        if counts[state]
    )
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}: {', '.join(states)}"


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        filters = (vllm_nginx_lb_changes, vllm_nginx_lb_told_changes, vllm_nginx_lb_told_states)
        return {each.__name__: each for each in filters}
