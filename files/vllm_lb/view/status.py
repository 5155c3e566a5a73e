# SPDX-License-Identifier: Apache-2.0
"""The command `status`: what the last tick decided, and the result."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.errors import FailureError
from vllm_lb.files import read_json
from vllm_lb.outcome import LIVE, overdue
from vllm_lb.text import seconds_of
from vllm_lb.view.history_reader import outcomes, ticks_since
from vllm_lb.view.table import table_of_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_lb.outcome import Outcome, Status
    from vllm_lb.state import State

HOUR_SECONDS = 3600
CLEAR_SCREEN = "\x1b[2J\x1b[H"


def status_command(state: State, *, as_json: bool, watch: bool) -> None:
    """Print the last decision; raise a FailureError when the last tick without a fault is too old."""
    path = state.directory / "status.json"
    try:
        if as_json:
            print(json.dumps(read_json(path), indent=1))
            last = state.last()
        else:
            show(state, watch=watch)
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


def show(state: State, *, watch: bool) -> None:
    """Print the status; with `watch`, again whenever a tick has ended, until interrupted.

    Raises:
        FileNotFoundError: no tick has ended yet.
    """
    is_terminal = sys.stdout.isatty()
    shown, reloads = "", 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            status = state.status()
            if is_new := status.decided_at != shown:
                shown, reloads = status.decided_at, reloads_in_the_last_hour(state, status)
            if is_new or is_terminal:  # on a terminal each second, because ages grow
                width = shutil.get_terminal_size().columns if is_terminal else None
                lines = [*table_of_nodes(status.pools, width), "", *summary(status, time.time(), reloads)]
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


def summary(status: Status, now: float, reloads: int) -> Iterator[str]:
    """Yield the lines below the table. `now` is in seconds since 1970."""
    why = f": {status.error or status.deferred}" if status.error or status.deferred else ""
    age = now - seconds_of(status.decided_at)
    yield f"{status.outcome} {age:.0f} s ago, at {status.decided_at}, generation {status.generation}{why}"
    if status.error and status.succeeded_at:
        yield f"last tick without a fault: {status.succeeded_at}"
    changes = "reload" if status.totals.published == 0 else "change"
    draining = f"{status.draining_generations} reload{'s' * (status.draining_generations != 1)}"
    yield f"{reloads} {changes}{'s' * (reloads != 1)} in the last hour, old workers of {draining} still drain"
