# SPDX-License-Identifier: Apache-2.0
"""drained.json: the last entry of each node that an operator drained or undrained.

Each ingress host has its own file. A host that was away while a node was drained learns of it from the others: the
playbooks copy the entries of each host to the others (`drains --merge`), and the newer one of two entries counts. So
the file also has the entries of nodes that are in rotation again.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_lb.causes import FailureCause, NodeCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import read_json
from vllm_lb.journal import WARNING, log
from vllm_lb.plan import TIME, PoolPlan
from vllm_lb.schema import build, number, setting, text
from vllm_lb.settings import NAME
from vllm_lb.state import State
from vllm_lb.text import printable, seconds_of

VERSION = 2
FILE = "drained.json"
MAX_REASON = 200  # characters, as many as a status has room for
LATEST_SECONDS = 2**32  # the year 2106: a later time is a mistake
KEPT_SECONDS = 90 * 86400  # how long a host may be away that knows a node as drained, after the node was removed


def is_time(value: str) -> bool:
    """Tell whether a text is an RFC 3339 time that an entry can have."""
    return bool(re.fullmatch(TIME, value)) and 0 < seconds_of(value) < LATEST_SECONDS


@data(kw_only=True)
class Entry:
    """Since when a node is drained or undrained, why, and by whom."""

    since: str = setting("an RFC 3339 time", is_time)
    reason: str | None = text(rf"[ -~]{{1,{MAX_REASON}}}", "printable text", None)
    by: str | None = text(rf"[ -~]{{1,{MAX_REASON}}}", "printable text", None)


@data(kw_only=True)
class Drains:
    """The content of drained.json: the last entry of each node that is drained, and of each that no longer is."""

    version: int = number(VERSION, VERSION, VERSION)
    nodes: dict[str, Entry]
    undrained: dict[str, Entry] | None = None

    def entries(self) -> Iterator[tuple[str, bool, Entry]]:
        """Yield the name of each node, whether it is drained, and its entry."""
        for is_drained, entries in ((True, self.nodes), (False, self.undrained or {})):
            for name, entry in entries.items():
                yield name, is_drained, entry

    def last_seconds(self, name: str) -> float:
        """Return the time of the last entry of a node, in seconds since 1970; 0 without an entry."""
        return max((seconds_of(entry.since) for each, _, entry in self.entries() if each == name), default=0.0)

    def with_entry(self, name: str, entry: Entry, *, drained: bool) -> "Drains":
        """Return the drains with another entry for a node, whatever the last one was."""
        nodes = {each: said for each, said in self.nodes.items() if each != name}
        undrained = {each: said for each, said in (self.undrained or {}).items() if each != name}
        (nodes if drained else undrained)[name] = entry
        return Drains(nodes=nodes, undrained=undrained)


def newest(*known: Drains) -> Drains:
    """Return the newest entry of each node. The order of `known` does not matter."""
    last: dict[str, tuple[tuple[float, bool, str, str], Entry]] = {}
    for drains in known:
        for name, is_drained, entry in drains.entries():
            rank = (seconds_of(entry.since), is_drained, entry.reason or "", entry.by or "")
            if name not in last or rank > last[name][0]:
                last[name] = rank, entry
    return Drains(
        nodes={name: entry for name, (rank, entry) in last.items() if rank[1]},
        undrained={name: entry for name, (rank, entry) in last.items() if not rank[1]},
    )


def drains_of(raw: Any, former_since: str, where: str) -> Drains:
    """Return drains from JSON. A list of names is the format of former releases; it gets the time `former_since`.

    Raises:
        FailureError: it is neither.
    """
    problems: list[str] = []
    if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
        raw = {"version": VERSION, "nodes": {name: {"since": former_since} for name in raw}}
    found = build(Drains, raw, "", problems)
    if isinstance(found, Drains) and not problems:
        problems = [f"{printable(name)}: expected a node's name" for name, *_ in found.entries() if not is_name(name)]
    if problems:
        raise FailureError(FailureCause.FILE_UNREADABLE, f"{where} is not a list of drains: {printable(problems[0])}")
    assert isinstance(found, Drains)  # tells the type checker what build() returned
    return newest(found)


def is_name(name: str) -> bool:
    """Tell whether a text can be a node's name."""
    return bool(re.fullmatch(NAME, name))


def read_drains(state: State) -> Drains:
    """Return the drains of this host; if their file is damaged, those that the last tick knew."""
    path = state.directory / FILE
    try:
        return drains_of(read_json(path), written_at(path), str(path))
    except FileNotFoundError:
        return Drains(nodes={})
    except FailureError as failure:
        kept = drains_of_last_tick(state)
        names = ", ".join(sorted(kept)) or "nothing"
        log(WARNING, f"{failure}: what the last tick knew as drained stays so: {names}")
        return Drains(nodes=kept)


def written_at(path: Path) -> str:
    """Return when a file was written, as RFC 3339 has it: the drains of the former format are at least that old."""
    with contextlib.suppress(OSError, ValueError, OverflowError):
        at = datetime.fromtimestamp(path.lstat().st_mtime, UTC).isoformat(timespec="milliseconds")
        if is_time(at):
            return at
    return "1970-01-02T00:00:00+00:00"  # somebody has set an impossible time


def drains_of_last_tick(state: State) -> dict[str, Entry]:
    """Return the drained nodes of the last tick; none if its status cannot be read."""
    with contextlib.suppress(FileNotFoundError, FailureError):
        status = state.status()
        nodes = [node for pool in status.pools for node in pool.nodes if node.cause == NodeCause.DRAINED_BY_OPERATOR]
        since = {node.name: node.drained_since or status.decided_at for node in nodes}
        return {node.name: Entry(since=since[node.name], reason=node.drain_reason) for node in nodes}
    return {}


def tidied(drains: Drains, configured: Collection[str]) -> Drains:
    """Return drains without the entries that are of no use: old ones of undrained nodes that are not configured.

    A node that was drained and then removed stays drained, for when it returns. One that was undrained and then removed
    stays undrained, also if a host that was away meanwhile knows it as drained.
    """
    latest = time.time() - KEPT_SECONDS
    undrained = {
        name: entry
        for name, entry in sorted((drains.undrained or {}).items())
        if name in configured or seconds_of(entry.since) > latest
    }
    return Drains(nodes=dict(sorted(drains.nodes.items())), undrained=undrained)


def write_drains(state: State, drains: Drains) -> None:
    """Write the drains. No other file has them, so a power cut must not lose them."""
    state.write(FILE, dataclasses.asdict(drains), sync=True)


def with_drains(pool: PoolPlan, drains: Drains) -> PoolPlan:
    """Return a plan in which each node that the operator drained has since when and why."""
    nodes = tuple(
        dataclasses.replace(
            node,
            reason=f"{node.reason}: {entry.reason}" if entry.reason else node.reason,
            drained_since=entry.since,
            drain_reason=entry.reason,
        )
        if node.cause == NodeCause.DRAINED_BY_OPERATOR and (entry := drains.nodes.get(node.name))
        else node
        for node in pool.nodes
    )
    return dataclasses.replace(pool, nodes=nodes)
