# SPDX-License-Identifier: Apache-2.0
"""The result of a plan, and the format of status.json, which has both."""

import re

from vllm_lb.causes import DeferredCause, FailureCause
from vllm_lb.data import data
from vllm_lb.plan import TIME, Plan
from vllm_lb.schema import choice, number, setting, text
from vllm_lb.settings import MAX_WEIGHT, NAME, POOL_NAME
from vllm_lb.text import PRINTABLE, seconds_of

OUTCOMES = ("reloaded", "published", "unchanged", "deferred", "rolled_back", "failed")
LIVE = ("reloaded", "published")  # the decision went live
CHANGES = (*LIVE, "rolled_back", "failed")  # the tick tried to change what is live


def are_weights(pools: dict[str, dict[str, int]]) -> bool:
    """Tell whether a mapping has weights by the names of pools and nodes."""
    return all(re.fullmatch(POOL_NAME, name) for name in pools) and all(
        re.fullmatch(NAME, name) and 0 <= weight <= MAX_WEIGHT
        for nodes in pools.values()
        for name, weight in nodes.items()
    )


@data(kw_only=True)
class Totals:
    """How many ticks ended in which way."""

    reloaded: int = number(0, 2**53, 0)
    published: int = number(0, 2**53, 0)
    unchanged: int = number(0, 2**53, 0)
    deferred: int = number(0, 2**53, 0)
    rolled_back: int = number(0, 2**53, 0)
    failed: int = number(0, 2**53, 0)


@data(kw_only=True, slots=False)  # without slots: Status inherits from this and from Plan
class Outcome:
    """The result of a tick, and totals of the ticks so far."""

    decided_at: str = text(TIME, "an RFC 3339 time")
    generation: str | None = text(r"[0-9a-z]{1,64}", "a generation")
    applied: bool
    outcome: str = choice(*OUTCOMES)
    deferred_cause: str | None = choice(*DeferredCause, default=None)
    deferred: str | None = text(PRINTABLE, "printable text", None)  # why a change of weights waits
    host: str | None = text(r"[!-~]{1,255}", "a host's name", None)  # of the ingress, as its kernel knows it
    draining_generations: int = number(0, 2**22, 0)
    # By pool and node, where the live weight differs from the decided one; None: it is not known what nginx serves.
    live_weights: dict[str, dict[str, int]] | None = setting("weights by pool and node", are_weights, None)
    error_cause: str | None = choice(*FailureCause, default=None)
    error: str | None = text(r"[ -~]*", "printable text")
    interval_seconds: float = number(0.1, 86400, 10.0)
    succeeded_at: str | None = text(TIME, "an RFC 3339 time", None)  # the last tick without a fault
    changed_at: str | None = text(TIME, "an RFC 3339 time", None)  # the last tick with one of CHANGES
    changed_outcome: str | None = choice(*CHANGES, default=None)  # the outcome of that tick
    totals: Totals = Totals()
    package_version: str | None = text(r"[!-~]{1,40}", "a version", None)  # of the script that wrote this


@data(kw_only=True, slots=False)
class Status(Plan, Outcome):
    """status.json: a plan and its result."""


def overdue(last: Outcome, now: float) -> str | None:
    """Return a complaint if the last tick without a fault is older than three intervals or in the future, else None.

    `now` is in seconds since 1970.
    """
    age = now - seconds_of(last.succeeded_at or "")
    if -last.interval_seconds <= age <= 3 * last.interval_seconds:
        return None
    if age < 0:
        return f"the last tick without a fault was at {last.succeeded_at}, in the future: was the clock set back?"
    when = f"the last tick without a fault was {age:.0f} s ago" if last.succeeded_at else "every tick had a fault"
    due = f"one is due every {last.interval_seconds:g} s"
    return f"{when}; {due}: see journalctl -u vllm-nginx-lb, and whether vllm-nginx-lb.timer is active"
