# SPDX-License-Identifier: Apache-2.0
"""Tables of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.text import two_digits
from vllm_lb.view.fleet import STILL_LIVE, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_lb.plan import PoolPlan
    from vllm_lb.view.fleet import Row

HEADINGS = ("POOL", "NODE", "STATE", "KV", "WAITING", "RUNNING", "WEIGHT")
NARROW_HEADINGS = ("NODE", "STATE", "KV", "WAIT", "RUN", "WEIGHT")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns; the last column has no padding."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def table_of_nodes(rows: Sequence[Row], now: float, width: int | None = None) -> list[str]:
    """Return the nodes as lines. If a line is wider than `width` columns, the reasons get lines of their own.

    The live weights have a column if one of them is not the decided one. `now` is in seconds since 1970.
    """
    has_live = any(row.differs for row in rows)
    last = ["LIVE"] if has_live else []
    cells = [cells_of(row, has_live=has_live) for row in rows]
    reasons = [reason(row, now) for row in rows]
    wide = [[*each, why] for each, why in zip(cells, reasons, strict=True)]
    lines = aligned([[*HEADINGS, *last, "REASON"], *wide])
    if width and max(map(len, lines)) > width:
        lines = aligned([[*NARROW_HEADINGS, *last], *(each[1:] for each in cells)])  # without the pool, too
        lines += ["", *(f"{row.name}: {why}" for row, why in zip(rows, reasons, strict=True))]
    return lines


def cells_of(row: Row, *, has_live: bool) -> list[str]:
    """Return a node's cells, without the reason."""
    plan = row.plan
    kv = "-" if plan is None or plan.kv_cache_usage is None else two_digits(plan.kv_cache_usage)
    counts = [shown(value) for value in ((plan.waiting, plan.running, plan.weight) if plan else (None, None, None))]
    state = STILL_LIVE if row.is_still_live else row.state
    return [row.pool, row.name, state, kv, *counts, *([shown(row.live)] if has_live else [])]


def shown(value: int | None) -> str:
    """Return a number as it stands in a cell."""
    return "-" if value is None else str(value)


def held_pools(pools: Sequence[PoolPlan]) -> list[str]:
    """Return why pools do not get the weights that follow from their readings, a line for each."""
    return [f"{pool.name}: {pool.held}" for pool in pools if pool.held]
