# SPDX-License-Identifier: Apache-2.0
"""The nodes as `status` shows them, with decided and live weights: select, sort and count them. Pure."""

from __future__ import annotations

import fnmatch
import math
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.plan import STATES
from vllm_lb.text import quoted, seconds_of, two_digits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_lb.plan import NodePlan, PoolPlan

STILL_LIVE = "still live"  # shown as the state of a node whose decided weight is 0, and that still gets requests
EJECTED = "ejected"  # the state of a node that is up, and that nginx's Lua has ejected for some seconds
GONE = "gone"  # the state of a node that nginx knows and the plan does not
RANKS = ("down", "unknown", EJECTED, "up", "drained")  # states, the worst first; "up" here is a node with an error
MOST_NAMES = 3  # names of nodes in one line


@data(kw_only=True)
class Row:
    """One node of one pool. `plan` is None for a node that nginx still knows and the plan does not."""

    pool: str
    name: str
    plan: NodePlan | None
    live: int | None  # the weight that nginx runs, 0 to 100; None: it is not known
    ejected: str | None = None  # the cause of an ejection that lasts

    @property
    def state(self) -> str:
        """The decided state, or EJECTED or GONE."""
        if self.plan is None:
            return GONE
        return EJECTED if self.ejected and self.plan.state == "up" else self.plan.state

    @property
    def decided(self) -> int:
        """The decided weight, 0 to 100."""
        return self.plan.weight if self.plan else 0

    @property
    def differs(self) -> bool:
        """Whether nginx runs another weight than the decided one."""
        return self.live not in (None, self.decided)

    @property
    def is_still_live(self) -> bool:
        """Whether the node gets requests although its decided weight is 0."""
        return self.decided == 0 and self.differs

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong with the node, and it is in rotation. A low weight is not wrong."""
        is_missing = self.live == 0 and self.differs
        return self.plan is not None and self.state == "up" and not self.plan.error_cause and not is_missing


@data(kw_only=True)
class Filter:
    """Which nodes are shown; an empty filter shows all."""

    pools: Sequence[str] = ()
    states: Sequence[str] = ()
    names: Sequence[str] = ()  # names of nodes, or patterns such as gpu-1*

    def __bool__(self) -> bool:
        """Tell whether something is left out."""
        return bool(self.pools or self.states or self.names)

    def takes(self, row: Row) -> bool:
        """Tell whether a node is shown."""
        return (
            (not self.pools or row.pool in self.pools)
            and (not self.states or row.state in self.states)
            and (not self.names or any(fnmatch.fnmatchcase(row.name, name) for name in self.names))
        )

    def check(self, rows: Sequence[Row]) -> None:
        """Raise a FailureError (exit code 2) for a pool or a name that is not there: it is probably misspelt."""
        pools = {row.pool: None for row in rows}
        for pool in self.pools:
            if pool not in pools:
                problem = f"no pool {quoted(pool)}: expected one of {', '.join(pools)}"
                raise FailureError(FailureCause.USAGE, problem, EXIT_USAGE)
        for name in self.names:
            if not any(fnmatch.fnmatchcase(row.name, name) for row in rows):
                problem = f"no node {quoted(name)} in the last decision: vllm-nginx-lb status --all has all names"
                raise FailureError(FailureCause.NODE_UNKNOWN, problem, EXIT_USAGE)


def rows_of(
    pools: Sequence[PoolPlan],
    differing: Mapping[str, Mapping[str, int]] | None = None,
    ejected: Mapping[tuple[str, str], str] | None = None,
) -> list[Row]:
    """Return the nodes in the order of the plan, then those that only nginx still knows.

    `differing` has the live weights, by pool and node, where they are not the decided ones; None: none is known.
    `ejected` has the causes of ejections, by pool and node.
    """
    rows, known, causes = [], differing or {}, ejected or {}
    for pool in pools:
        for node in pool.nodes:
            same = None if differing is None else node.weight
            live = known.get(pool.name, {}).get(node.name, same)
            cause = causes.get((pool.name, node.name))
            rows.append(Row(pool=pool.name, name=node.name, plan=node, live=live, ejected=cause))
    planned = {(row.pool, row.name) for row in rows}
    for pool_name, nodes in known.items():
        gone = [(name, live) for name, live in nodes.items() if live and (pool_name, name) not in planned]
        rows += [Row(pool=pool_name, name=name, plan=None, live=live) for name, live in gone]
    return rows


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Sort: still live, down, unknown, ejected, with an error, drained (the longest first), then the lowest weight."""

    def key(row: Row) -> tuple[float, ...]:
        plan = row.plan
        if row.is_still_live or not plan:
            return -1, -(row.live or 0)
        rank = len(RANKS) if row.is_well else RANKS.index(row.state)
        since = math.inf  # sorts behind every drain that has a time
        if row.state == "drained" and plan.drained_since:
            since = seconds_of(plan.drained_since)
        return rank, since, row.decided, -(plan.kv_cache_usage or 0.0)

    return sorted(rows, key=key)


def totals(rows: Sequence[Row]) -> str:
    """Return the states, the load and the fullest KV cache of nodes in a line."""
    plans = [row.plan for row in rows if row.plan]
    running, waiting = (sum(getattr(plan, name) or 0 for plan in plans) for name in ("running", "waiting"))
    found = f"{counted(len(rows), 'node')}: {states(rows) or 'none'}; {running} running, {waiting} waiting"
    read = [plan for plan in plans if plan.kv_cache_usage is not None]
    fullest = max(read, key=lambda plan: plan.kv_cache_usage or 0.0, default=None)
    if fullest is None:
        return found
    return f"{found}; highest KV {two_digits(fullest.kv_cache_usage or 0.0)} ({fullest.name})"


def states(rows: Sequence[Row]) -> str:
    """Return how many nodes have which state, such as "2 up, 1 drained (1 still live)"."""
    found = []
    for state in (*STATES, EJECTED, GONE):
        those = [row for row in rows if row.state == state]
        live = sum(row.is_still_live for row in those)
        found += [f"{len(those)} {state}" + (f" ({live} still live)" if live else "")] if those else []
    return ", ".join(found)


def counted(number: int, word: str) -> str:
    """Return "1 node" or "2 nodes"."""
    return f"{number} {word}{'s' * (number != 1)}"


def totals_of_pools(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the totals of each pool, if there are several."""
    pools = list(dict.fromkeys(row.pool for row in rows))
    for pool in pools if len(pools) > 1 else ():
        yield f"  {pool}: {totals([row for row in rows if row.pool == pool])}"


def differences(rows: Sequence[Row]) -> str | None:
    """Return in which nodes the live weights are not the decided ones, those that still get requests first, or None."""
    found = sorted(
        (row for row in rows if row.differs), key=lambda row: (not row.is_still_live, -row.decided, -(row.live or 0))
    )
    if not found:
        return None
    named = [
        f"{row.name} {'still gets requests ' if row.is_still_live else ''}(live {row.live}, {decision(row)})"
        for row in found[:MOST_NAMES]
    ]
    more = [f"and {len(found) - MOST_NAMES} more"] if len(found) > MOST_NAMES else []
    return f"{counted(len(found), 'node')} {'differs' if len(found) == 1 else 'differ'}; {', '.join(named + more)}"


def decision(row: Row) -> str:
    """Return what is decided for a node."""
    return f"decided {row.decided}" if row.plan else "no longer in the configuration"


def reason(row: Row, now: float) -> str:
    """Return why a node has its weight, and how long ago it was drained by hand. `now` is in seconds since 1970."""
    plan = row.plan
    if not plan:
        return "no longer in the configuration, and nginx still sends it requests"
    why = plan.reason
    if plan.drained_since:
        why += f" ({span(now - seconds_of(plan.drained_since))} ago)"
    if row.state == EJECTED:
        why = f"ejected by nginx for a short time ({row.ejected}); {why}"
    return f"{plan.state}, and nginx still sends it requests: {why}" if row.is_still_live else why


def span(seconds: float) -> str:
    """Return a time as "8 s", "3 min", "2 h" or "3 d", rounded down."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
