# SPDX-License-Identifier: Apache-2.0
"""The commands `drain`, `undrain` and `drains`: entries in drained.json, which the next tick reads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.drains import MAX_REASON, Drains, Entry, drains_of, is_time, newest, read_drains, tidied, write_drains
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.text import printable, quoted, seconds_of, timestamp

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vllm_lb.settings import Config, Pool
    from vllm_lb.state import State

LOCK_WAIT_SECONDS = 15
MAX_INPUT = 2**24  # characters


@data(kw_only=True)
class Said:
    """What a command says of nodes: whether they are drained, why, by whom, and when (RFC 3339; None: now)."""

    drained: bool
    reason: str | None = None
    by: str | None = None
    at: str | None = None


def drain_commands(config: Config, state: State, options: Any) -> None:
    """Run one of the commands, with the options of the command line."""
    match options.command:
        case "drains" if not options.merge:
            drains_command(config, state, merge=False, as_json=options.json)
        case "drains":
            with state.lock(LOCK_WAIT_SECONDS):
                drains_command(config, state, merge=True, as_json=options.json)
        case command:
            said = Said(drained=command == "drain", reason=options.reason, by=options.by, at=options.at)
            with state.lock(LOCK_WAIT_SECONDS):
                drain_command(config, state, options.node, said, as_json=options.json)


def drain_command(config: Config, state: State, names: Sequence[str], said: Said, *, as_json: bool) -> None:
    """Drain nodes until they are undrained, or undrain them."""
    if said.at is not None and not is_time(said.at):
        raise FailureError(FailureCause.USAGE, f"--at: {quoted(said.at)}: expected an RFC 3339 time", EXIT_USAGE)
    before = read_drains(state)
    # A node that was drained, and then removed from config.yml, can still be undrained.
    check_names(config, names, () if said.drained else before.nodes)
    if said.drained:
        check_others_serve(config, state, before, set(names) - before.nodes.keys())
    drains = before
    for name in names:
        drains = drains.with_entry(name, entry_for(name, before, said), drained=said.drained)
    write_drains(state, tidied(drains, names_of(config)))
    changed = [name for name in names if before.nodes.get(name) != drains.nodes.get(name)]
    if as_json:
        print(json.dumps({"nodes": list(names), "drained": said.drained, "changed": changed}))
        return
    for name in names:
        if name not in changed:
            print(f"{name} is {'already' if said.drained else 'not'} drained")
        elif name in before.nodes and said.drained:
            print(f"{name} is already drained; the reason is now: {drains.nodes[name].reason}")
        else:
            verb = "drained" if said.drained else "undrained"
            print(f"{name} {verb}; the next tick makes it live, requests under way finish")


def entry_for(name: str, before: Drains, said: Said) -> Entry:
    """Return the new entry of a node. A drained node that is drained again keeps its time, and may get a new reason."""
    reason = printable(said.reason, MAX_REASON) if said.reason else None
    by = printable(said.by or user(), MAX_REASON)
    was = before.nodes.get(name) if said.drained else None
    if was:
        return was if reason in {None, was.reason} else dataclasses.replace(was, reason=reason, by=by)
    # It must be newer than the last entry, also if a clock was set back.
    seconds = max(seconds_of(said.at) if said.at else time.time(), before.last_seconds(name) + 0.001)
    since = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return Entry(since=since, reason=reason, by=by)


def user() -> str:
    """Return who runs this, and where."""
    name = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def check_names(config: Config, names: Sequence[str], further: Collection[str]) -> None:
    """Raise a FailureError if one of the names is neither a configured node's nor one of `further`."""
    known = names_of(config)
    for name in names:
        if name not in known and name not in further:
            problem = f"no node {quoted(name)}: expected one of {', '.join(known)}"
            raise FailureError(FailureCause.NODE_UNKNOWN, problem, EXIT_USAGE)


def names_of(config: Config) -> list[str]:
    """Return the names of all configured nodes."""
    return [node.name for pool in config.pools for node in pool.nodes]


def check_others_serve(config: Config, state: State, drains: Drains, names: Collection[str]) -> None:
    """Raise a FailureError if a pool would have no node that serves without the nodes `names`."""
    for pool in config.pools:
        taken = [node.name for node in pool.nodes if node.name in names]
        if taken and not others_that_serve(pool, state, {*names, *drains.nodes}):
            last = f"{taken[0]} is the last node" if len(taken) == 1 else f"{', '.join(taken)} are the last nodes"
            verb = "serves" if len(taken) == 1 else "serve"
            problem = f"{last} of pool {pool.name} that {verb}: undrain or mend another one first"
            raise FailureError(FailureCause.LAST_NODE, problem)


def others_that_serve(pool: Pool, state: State, drained: Collection[str]) -> set[str]:
    """Return the nodes of a pool that are neither drained nor down, as of the last tick."""
    out = {node.name for node in pool.nodes if node.drain} | set(drained)
    with contextlib.suppress(FileNotFoundError, FailureError):
        out |= {node.name for each in state.status().pools for node in each.nodes if node.state == "down"}
    return {node.name for node in pool.nodes} - out


def drains_command(config: Config, state: State, *, merge: bool, as_json: bool) -> None:
    """Show which nodes are drained, since when, by whom and why.

    With `merge`, first take the newest entry of each node from standard input: a JSON list of the `drains` that this
    command printed on other hosts with `as_json`.
    """
    before = drains = tidied(read_drains(state), names_of(config))
    if merge:
        drains = tidied(newest(before, *read_others()), names_of(config))
        if drains != before:
            write_drains(state, drains)
    if as_json:
        changed = sorted(drains.nodes.keys() ^ before.nodes.keys())
        print(json.dumps({"now": timestamp(), "changed": changed, "drains": dataclasses.asdict(drains)}))
        return
    for name, entry in sorted(drains.nodes.items(), key=lambda each: seconds_of(each[1].since)):
        by = f" by {entry.by}" if entry.by else ""
        print(f"{name}: drained since {entry.since}{by}: {entry.reason or 'no reason was given'}")
    if not drains.nodes:
        print("no node is drained by hand (vllm_drain: true in the inventory is not listed here)")


def read_others() -> list[Drains]:
    """Return the drains of other hosts from standard input.

    Raises:
        FailureError: it is something else (exit code 2).
    """
    try:
        raw = json.loads(sys.stdin.read(MAX_INPUT))
    except (ValueError, RecursionError) as error:
        raise FailureError(FailureCause.USAGE, "standard input is not JSON", EXIT_USAGE) from error
    if not isinstance(raw, list):
        raise FailureError(FailureCause.USAGE, "standard input is not a list", EXIT_USAGE)
    return [drains_of(each, timestamp(), "standard input") for each in raw]
