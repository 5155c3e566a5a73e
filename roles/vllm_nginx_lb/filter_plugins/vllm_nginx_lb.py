# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""Filters of the role vllm_nginx_lb: the batches of rolling.yml, and what a drain or a batch still waits for.

Nodes of the inventory are dicts with `name`, `pool` and `drain`. Nodes of a status are those of status.json. A run of
rolling.yml is known by the reason of its drains and of their ends: see RUN, and __vllm_nginx_lb_run_reason in
vars/main.yml. So drained.json on the ingress hosts has the nodes that a run has done, whatever ended the run.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

Node = dict[str, Any]

# A reason with further words is an operator's.
RUN = re.compile(r"rolling\.yml ([0-9a-f]{8}), (\d{1,6}) of (\d{1,6}) nodes done, begun (\S{20,40})")
# A run that stopped longer ago is over: the same command begins again with all nodes.
RESUMABLE_SECONDS = 86400


def vllm_nginx_lb_rolling_plan(nodes: Sequence[Node], settings: Mapping[str, Any], drains: Mapping[str, Any]) -> Node:
    """Return what a run of rolling.yml does.

    Args:
        nodes: the nodes of the inventory.
        settings: `command`; `nodes`, the names that were asked for, empty for all; `batch`, a number or a percentage
            of a pool; `serving_ratio`, 0 to 1; `resume`; `now`, an RFC 3339 time.
        drains: what drained.json has.

    Returns:
        `batches`, lists of names; `key`, `total`, `begun` and `done`, which make the reason of the drains: the number
        of nodes of the run, when it began, and how many it has done already; `lines` that tell the operator what
        the run does and leaves out; and `problems`, which forbid the run.
    """
    wanted = list(dict.fromkeys(settings["nodes"] or [node["name"] for node in nodes]))
    key = hashlib.sha256("\n".join([settings["command"], *settings["nodes"]]).encode()).hexdigest()[:8]
    inventory = [node["name"] for node in nodes if is_true(node.get("drain"))]
    drained = {name: entry.get("reason") or "" for name, entry in drains["nodes"].items()}
    by_rolling = [name for name, reason in drained.items() if RUN.fullmatch(reason)]
    operator = [
        name for name in wanted if name in drained and name not in {*by_rolling, *settings["nodes"], *inventory}
    ]
    begun, done = unfinished_run(key, drains, settings["now"]) if is_true(settings["resume"]) else ("", [])
    todo = [name for name in wanted if name not in {*inventory, *operator, *done}]
    todo.sort(key=lambda name: name not in drained)  # nodes that are already out come first
    out = {*inventory, *(name for name in drained if name not in todo)}
    batches, shrunk, problems = batches_of(nodes, todo, out, set(drained), settings)
    left_out = {
        "Left out, because the inventory has vllm_drain: true": [name for name in wanted if name in inventory],
        "Left out, because somebody has drained them (-e rolling_nodes=… takes them too)": operator,
        f"Done already by this run, which began at {begun} (-e rolling_resume=false takes them again)": done,
        "Still drained by another run of rolling.yml (playbooks/undrain.yml puts them back)": [
            name for name in by_rolling if name not in wanted
        ],
    }
    order = (
        ", ".join(todo) if max(map(len, batches), default=1) == 1 else "; ".join(", ".join(each) for each in batches)
    )
    return {
        "batches": batches,
        "key": key,
        "total": len(done) + len(todo),
        "begun": begun or settings["now"],
        "done": len(done),
        "lines": [
            f"{'In turn' if len(batches) == len(todo) else 'In batches'}: {order or 'no node'}",
            *shrunk,
            *(f"{why}: {', '.join(names)}" for why, names in left_out.items() if names),
        ],
        "problems": problems,
    }


def unfinished_run(key: str, drains: Mapping[str, Any], now: str) -> tuple[str, list[str]]:
    """Return when the last run with this key began, and the nodes that it has done.

    The run is over if it has done all nodes, if its last entry is older than a day, or if somebody has drained or
    undrained a node since, because then the states of the nodes are not known. The time is empty then.
    """
    entries = [(name, True, entry) for name, entry in drains["nodes"].items()]
    entries += [(name, False, entry) for name, entry in (drains.get("undrained") or {}).items()]
    last = max(entries, key=lambda each: seconds_of(each[2]["since"]), default=None)
    match = last and RUN.fullmatch(last[2].get("reason") or "")
    if not last or not match or match[1] != key or seconds_of(now) - seconds_of(last[2]["since"]) > RESUMABLE_SECONDS:
        return "", []
    of_run = {
        name: (is_drained, int(each[2]))
        for name, is_drained, entry in entries
        if (each := RUN.fullmatch(entry.get("reason") or "")) and each.group(1, 4) == match.group(1, 4)
    }
    done = [name for name, (is_drained, _) in of_run.items() if not is_drained]
    is_over = max(count for _, count in of_run.values()) >= int(match[3])
    return ("", []) if is_over else (match[4], done)


def seconds_of(time: str) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0 for a text that is no time."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def is_true(value: object) -> bool:
    """Tell whether a value means true. ansible-core 2.16 makes texts of true and false."""
    return str(value).lower() in {"true", "yes", "on", "1", "y", "t"}


def batches_of(
    nodes: Sequence[Node],
    todo: Sequence[str],
    out: Collection[str],
    drained: AbstractSet[str],
    settings: Mapping[str, Any],
) -> tuple[list[list[str]], list[str], list[str]]:
    """Return the batches of the nodes `todo`, a line for each pool whose batches are smaller than asked, and problems.

    A batch has nodes of one pool, and leaves the pool the share that must serve. `out` are nodes that
    do not serve meanwhile. `drained` nodes do not serve already, so they take nothing away.
    """
    pool_of = {node["name"]: node.get("pool") or "llm_cluster" for node in nodes}
    batches: list[list[str]] = []
    shrunk, problems = list[str](), list[str]()
    for pool in dict.fromkeys(pool_of[name] for name in todo):
        members = [name for name in pool_of if pool_of[name] == pool]
        mine = [name for name in todo if pool_of[name] == pool]
        size, least = batch_size(settings["batch"], len(members)), least_serving(pool, nodes, settings["serving_ratio"])
        spare = len([name for name in members if name not in out]) - least
        if spare < 1 and not set(mine) <= drained:
            problems.append(
                f"pool {pool}: {least} of {len(members)} nodes must serve (rolling_serving_ratio "
                f"{settings['serving_ratio']}), and {len(members) - spare - least} are drained, so none can be taken "
                "out; undrain nodes, or lower the ratio"
            )
            continue
        if 0 < spare < size and len(mine) > spare:
            shrunk.append(
                f"pool {pool}: batches of {spare} instead of {size}, so that {least} of {len(members)} nodes serve"
            )
        size = max(1, min(size, spare))
        batches += [mine[start : start + size] for start in range(0, len(mine), size)]
    return sorted(batches, key=lambda each: todo.index(each[0])), shrunk, problems


def batch_size(batch: int | str, members: int) -> int:
    """Return how many nodes a batch has at most: a number, or a percentage of a pool's nodes, and at least one."""
    text = str(batch)
    return max(1, members * int(text[:-1]) // 100) if text.endswith("%") else int(text)


def least_serving(pool: str, nodes: Sequence[Node], ratio: float | str) -> int:
    """Return how many nodes of a pool must serve. Nodes that the inventory drains do not count."""
    members = [node for node in nodes if (node.get("pool") or "llm_cluster") == pool and not is_true(node.get("drain"))]
    return math.ceil(len(members) * float(ratio) - 1e-9)


def vllm_nginx_lb_rolling_obstacles(
    status: Mapping[str, Any], nodes: Sequence[Node], batch: Sequence[str], settings: Mapping[str, Any]
) -> list[str]:
    """Return why a batch cannot be taken out yet: other nodes that are not up, and a pool with too few others.

    Args:
        status: what status.json has.
        nodes: the nodes of the inventory.
        batch: the names.
        settings: `serving_ratio`, and `force`, with which nodes that are not up are no obstacle by themselves.
    """
    seen = {node["name"]: node for pool in status.get("pools", []) for node in pool["nodes"]}
    known = [node["name"] for node in nodes if not is_true(node.get("drain")) and node["name"] not in batch]
    states = {name: seen[name]["state"] if name in seen else "unknown" for name in known}
    not_up = [name for name in known if states[name] not in {"up", "drained"}]
    found = [f"not up: {', '.join(not_up)}"] if not_up and not is_true(settings["force"]) else []
    taken = [name for name in batch if seen.get(name, {}).get("state") != "drained"]
    for pool in dict.fromkeys(node.get("pool") or "llm_cluster" for node in nodes if node["name"] in taken):
        least = least_serving(pool, nodes, settings["serving_ratio"])
        others = [node["name"] for node in nodes if (node.get("pool") or "llm_cluster") == pool]
        serving = [name for name in others if states.get(name) == "up" and seen[name]["weight"]]
        if len(serving) < least:
            found.append(
                f"pool {pool}: {len(serving)} nodes would serve, and {least} must (rolling_serving_ratio "
                f"{settings['serving_ratio']})"
            )
    return found


def vllm_nginx_lb_unfinished(status: Mapping[str, Any], names: Sequence[str], down: Collection[str]) -> list[str]:
    """Return a sentence for each drained node that has requests, or may have.

    A node that refuses connections, or was `down` before it was drained, has none. A node that answers and cannot be
    read may have any number.
    """
    seen = {node["name"]: node for pool in status.get("pools", []) for node in pool["nodes"]}
    return [sentence for name in names for sentence in unfinished(name, seen.get(name, {}), down)]


def unfinished(name: str, node: Node, down: Collection[str]) -> Iterator[str]:
    """Yield what a drained node still does, if it does anything."""
    running, waiting = node.get("running"), node.get("waiting")
    if isinstance(running, int) and isinstance(waiting, int):
        if running + waiting:
            yield f"{name} still has {running + waiting} request(s)"
    elif name not in down and node.get("error_cause") != "connection_refused":
        yield f"{name} cannot be read ({node.get('error')}), so what it runs is not known"


def vllm_nginx_lb_rolling_variables(nodes: Sequence[Node], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the environment variables that the command gets for each of some nodes."""
    return {
        node["name"]: {
            "VLLM_NODE_NAME": node["name"],
            "VLLM_NODE_HOST": node["host"],
            "VLLM_NODE_PORT": str(node.get("port", 18090)),
            "VLLM_NODE_SCHEME": node.get("scheme", "http"),
        }
        for node in nodes
        if node["name"] in names
    }


def vllm_nginx_lb_idle(status: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return a sentence for each drained node without requests: why it has none."""
    nodes = [node for pool in status["pools"] for node in pool["nodes"] if node["name"] in names]
    why = {node["name"]: "" if node["running"] is not None else f"is down ({node['error']}), so it " for node in nodes}
    return [f"{name} {reason}runs nothing" for name, reason in why.items()]


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        filters = (
            vllm_nginx_lb_idle,
            vllm_nginx_lb_rolling_obstacles,
            vllm_nginx_lb_rolling_plan,
            vllm_nginx_lb_rolling_variables,
            vllm_nginx_lb_unfinished,
        )
        return {each.__name__: each for each in filters}
