# SPDX-License-Identifier: Apache-2.0
"""The command `explain`: each change of a node's weight, and which inputs had changed then."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vllm_lb.causes import FailureCause
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.outcome import LIVE
from vllm_lb.text import two_digits
from vllm_lb.view.history_reader import local_time, outcomes, ticks_since

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_lb.outcome import Status
    from vllm_lb.settings import Config
    from vllm_lb.state import State

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds
# The inputs that may change a weight, and their names in a line.
INPUTS = {
    "kv_cache_usage": "kv",
    "waiting": "waiting",
    "running": "running",
    "preemptions": "preemptions",
    "engines": "engines",
    "error": "error",
}


def explain_command(config: Config, state: State, name: str, since: str) -> None:
    """Print each change of a node's weight or state since a time, and which inputs had changed then.

    Raises:
        FailureError: the node or the time is not known (exit code 2).
    """
    seen, before = list[tuple[str, dict[str, Any]]](), list[dict[str, Any]]()
    for past in ticks_since(state, start_of(since)):  # not kept as a whole: a day of many nodes is large
        before.append(past.before)
        if row := past.node(name):
            seen.append((past.at, row))
    nodes = [node.name for pool in config.pools for node in pool.nodes]
    if name not in nodes and not seen:
        problem = f"no node {name!r}: expected one of {', '.join(nodes)}"
        raise FailureError(FailureCause.NODE_UNKNOWN, problem, EXIT_USAGE)
    if not seen:
        print(f"{name}: no tick since {since} is in the history")
        return
    status = last_status(state)
    became, changes = outcomes(before, status), 0
    for (_, was), (at, row) in itertools.pairwise([seen[0], *seen]):
        if (was["weight"], was["state"]) != (row["weight"], row["state"]):
            changes += 1
            print("\n".join(lines_of_change(at, was, row, became.get(at))))
    rows = [row for _, row in seen]
    spans = [span(rows, key, words) for key, words in {"weight": "weight", **INPUTS}.items() if key != "error"]
    period = f"from {local_time(seen[0][0])} to {local_time(seen[-1][0])}"
    print(f"\n{name}: {len(seen)} ticks {period}, {changes} changes")
    print(f"  {', '.join(spans)}")
    if complaint := decided_not_live(name, status):
        print(f"  {complaint}")


def decided_not_live(name: str, status: Status | None) -> str | None:
    """Return a line if nginx does not serve a node with its decided weight, or if that is not known."""
    if status is None:
        return None
    why = f"{status.outcome}: {status.error or status.deferred}" if status.error or status.deferred else status.outcome
    if status.live_weights is None:
        return f"it is not known which weight nginx serves ({why})"
    live = next((nodes[name] for nodes in status.live_weights.values() if name in nodes), None)
    if live is None:
        return None
    decided = next((node.weight for pool in status.pools for node in pool.nodes if node.name == name), None)
    how = "not configured any more" if decided is None else f"decided is {decided}, which is not live"
    return f"nginx serves it with weight {live}: {how} ({why})"


def last_status(state: State) -> Status | None:
    """Return the status, or None where there is none, or a damaged one."""
    with contextlib.suppress(FileNotFoundError, FailureError):
        return state.status()
    return None


def start_of(since: str) -> float:
    """Return the time that `since` means, in seconds since 1970."""
    if match := re.fullmatch(r"(\d{1,6})([smhd])", since):
        return time.time() - int(match[1]) * UNITS[match[2]]
    try:
        return datetime.fromisoformat(since).timestamp()
    except (ValueError, OverflowError) as error:
        problem = f"--since: {since!r}: expected a number with s, m, h or d, or a time such as 2026-11-26T10:00"
        raise FailureError(FailureCause.USAGE, problem, EXIT_USAGE) from error


def lines_of_change(
    at: str, was: Mapping[str, Any], row: Mapping[str, Any], outcome: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield the lines about one change of a node's weight or state."""
    state = f" ({was['state']} -> {row['state']})" if was["state"] != row["state"] else ""
    reason = row["reason"] or "the reason was not kept"
    yield f"{local_time(at)}  weight {was['weight']:>3} -> {row['weight']:>3}{state}: {reason}"
    changed = [
        f"{words} {shown(was[key])} -> {shown(row[key])}" for key, words in INPUTS.items() if was[key] != row[key]
    ]
    if changed:
        yield f"                since the tick before: {', '.join(changed)}"
    if outcome:
        why = outcome["error"] or outcome["deferred"]
        what = outcome["outcome"] if outcome["outcome"] in LIVE else f"decided, not live: {outcome['outcome']}"
        yield f"                {what}" + (f": {why}" if why else "")


def shown(value: Any) -> str:
    """Return the text of one input in a line."""
    return "-" if value is None else two_digits(value) if isinstance(value, float) else str(value)


def span(rows: Sequence[Mapping[str, Any]], key: str, words: str) -> str:
    """Return the least and the most of a column."""
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return f"{words} -"
    least, most = min(values), max(values)
    return f"{words} {shown(least)}" + (f" to {shown(most)}" if least != most else "")
