# SPDX-License-Identifier: Apache-2.0
"""The command `status`: what the last tick decided, what nginx runs, and the nodes, the worst first."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING

from vllm_lb import __version__
from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import read_json
from vllm_lb.outcome import LIVE, overdue
from vllm_lb.text import seconds_of
from vllm_lb.view.ejected import ejected_nodes
from vllm_lb.view.fleet import (
    Filter,
    counted,
    differences,
    rows_of,
    span,
    states,
    totals,
    totals_of_pools,
    worst_first,
)
from vllm_lb.view.history_reader import outcomes, ticks_since
from vllm_lb.view.table import held_pools, table_of_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_lb.outcome import Outcome, Status
    from vllm_lb.settings import Config
    from vllm_lb.state import State
    from vllm_lb.view.fleet import Row

HOUR_SECONDS = 3600
CLEAR_SCREEN = "\x1b[2J\x1b[H"
MOST_NODES = 30  # that are all shown, in the order of the configuration
LIMIT = 20  # nodes that are shown of more than that
LEAST_NODES = 3  # that are shown on the lowest terminal


@data(kw_only=True)
class Wanted:
    """Which nodes are shown, and how many of them."""

    filter: Filter = Filter()
    limit: int | None = None  # None: the usual limits
    all: bool = False


@data(kw_only=True)
class Seen:
    """The status, and what nginx and the history say beside it."""

    status: Status
    reloads: int  # publications of the last hour that went live
    ejected: Mapping[tuple[str, str], str] | None  # the causes of ejections, by pool and node; None: not known


def status_command(config: Config, state: State, wanted: Wanted, *, as_json: bool, watch: bool) -> None:
    """Print the last decision; raise a FailureError when the last tick without a fault is too old.

    Raises:
        FailureError: as above; or with exit code 2, the filter names a pool or a node that is not there.
    """
    path = state.directory / "status.json"
    try:
        if as_json:
            print_json(config, state, wanted)
            last = state.last()
        else:
            show(config, state, wanted, watch=watch)
            last = state.status()
    except FileNotFoundError as error:
        problem = f"{path} is missing: no tick has ended yet (systemctl start vllm-nginx-lb)"
        raise FailureError(FailureCause.STATUS_MISSING, problem) from error
    check_age(last, str(path))


def check_age(last: Outcome | None, path: str) -> None:
    """Raise a FailureError when the last tick without a fault is too old or not known."""
    if last is None:
        problem = f"{path} is not one of this version's: the next tick writes it anew"
        raise FailureError(FailureCause.STATUS_UNREADABLE, problem)
    if complaint := overdue(last, time.time()):
        raise FailureError(FailureCause.TICK_OVERDUE, complaint)


def print_json(config: Config, state: State, wanted: Wanted) -> None:
    """Print status.json as it is, whatever its version; with a filter or a limit, only with the nodes that it takes."""
    if not wanted.filter and wanted.limit is None:
        print(json.dumps(read_json(state.directory / "status.json"), indent=1))
        return
    status = state.status()
    rows = rows_of(status.pools, status.live_weights, ejected_nodes(config.nginx))
    wanted.filter.check(rows)
    taken = [row for row in rows if row.plan and wanted.filter.takes(row)]
    kept = {(row.pool, row.name) for row in worst_first(taken)[: wanted.limit]}
    pools = [
        dataclasses.replace(pool, nodes=tuple(node for node in pool.nodes if (pool.name, node.name) in kept))
        for pool in status.pools
    ]
    print(json.dumps(dataclasses.asdict(dataclasses.replace(status, pools=tuple(pools))), indent=1))


def show(config: Config, state: State, wanted: Wanted, *, watch: bool) -> None:
    """Print the status; with `watch`, again whenever a tick has ended, until interrupted.

    Raises:
        FileNotFoundError: no tick has ended yet.
    """
    is_terminal = sys.stdout.isatty()
    seen = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            status = state.status()
            is_new = seen is None or status.decided_at != seen.status.decided_at
            if seen is None or is_new:
                reloads = reloads_in_the_last_hour(state, status)
                seen = Seen(status=status, reloads=reloads, ejected=ejected_nodes(config.nginx))
            if is_new or is_terminal:  # on a terminal each second, because ages grow
                size = shutil.get_terminal_size() if is_terminal else None
                lines = lines_that_fit(seen, wanted, time.time(), size, watch=watch)
                print(CLEAR_SCREEN if watch and is_terminal else "", end="")
                print(*lines, sep="\n", flush=True)
            if not watch:
                return
            time.sleep(1)


def reloads_in_the_last_hour(state: State, status: Status) -> int:
    """Return how many publications of the last hour went live, as far as the history knows."""
    start = time.time() - HOUR_SECONDS
    found = outcomes((past.before for past in ticks_since(state, start)), status)
    return sum(each["outcome"] in LIVE and seconds_of(at) >= start for at, each in found.items())


def lines_that_fit(seen: Seen, wanted: Wanted, now: float, size: tuple[int, int] | None, *, watch: bool) -> list[str]:
    """Return all lines; of a large fleet, and with `watch`, only as many nodes as a terminal of this size has room for.

    `size` has columns and lines, or is None for what is no terminal; `now` is in seconds since 1970.
    """
    width = size[0] if size else None
    rows = rows_of(seen.status.pools, seen.status.live_weights, seen.ejected)
    wanted.filter.check(rows)
    taken = [row for row in rows if wanted.filter.takes(row)]
    unknown = ["it is not known which nodes nginx has ejected"] if seen.ejected is None else []
    head = [part for line in (*summary(seen.status, rows, now), *unknown) for part in wrapped(line, width)]
    tail = wrapped(work_of_nginx(seen.status, seen.reloads), width)
    is_large = len(taken) > MOST_NODES
    limit = len(taken) if wanted.all else wanted.limit or (LIMIT if is_large else len(taken))
    is_flexible = not wanted.all and not wanted.limit and size and (watch or is_large)
    while True:
        lines = [*head, "", *nodes_within(taken, limit, now, width), "", *tail]
        if not is_flexible or not size or len(lines) < size[1] or limit <= LEAST_NODES:
            return lines
        limit = min(limit, len(taken)) - 1


def wrapped(line: str, width: int | None) -> list[str]:
    """Return a line in parts of at most `width` columns."""
    return textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if width else [line]


def nodes_within(taken: Sequence[Row], limit: int, now: float, width: int | None) -> list[str]:
    """Return the table, the worst nodes first if not all of a few are shown, and how many more there are."""
    if not taken:
        return ["no node matches"]
    is_cut = len(taken) > limit
    ordered = worst_first(taken) if is_cut or len(taken) > MOST_NODES else taken
    table = table_of_nodes(ordered[:limit], now, width)
    rest = ordered[limit:]
    return [*table, *([f"... and {counted(len(rest), 'more node')} (--all): {states(rest)}"] if rest else [])]


def summary(status: Status, rows: Sequence[Row], now: float) -> Iterator[str]:
    """Yield the lines above the table. `now` is in seconds since 1970."""
    why = f": {status.error or status.deferred}" if status.error or status.deferred else ""
    age = now - seconds_of(status.decided_at)
    yield f"{status.host or 'this host'}, vllm-nginx-lb {status.package_version or __version__}"
    yield f"{status.outcome} {age:.0f} s ago, at {status.decided_at}, generation {status.generation}{why}"
    if status.error and status.succeeded_at:
        yield f"last tick without a fault: {status.succeeded_at}"
    if status.live_weights is None:
        yield "it is not known which weights nginx runs"
    elif found := differences(rows):
        yield f"nginx runs the weights of generation {(status.generation or 'unknown')[:12]}: {found}"
    yield totals(rows)
    yield from totals_of_pools(rows)
    yield from held_pools(status.pools)
    drained = [(seconds_of(row.plan.drained_since), row.name) for row in rows if row.plan and row.plan.drained_since]
    if drained:
        since, name = min(drained)
        longest = f"{name} ({span(now - since)})"
        yield f"{counted(len(drained), 'node')} drained by hand; the longest is {longest}"


def work_of_nginx(status: Status, reloads: int) -> str:
    """Return the line below the table."""
    changes = "reload" if status.totals.published == 0 else "change"
    draining = counted(status.draining_generations, "reload")
    return f"{counted(reloads, changes)} in the last hour, old workers of {draining} still drain"
