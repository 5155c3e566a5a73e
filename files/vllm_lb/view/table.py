# SPDX-License-Identifier: Apache-2.0
"""Tables of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.text import two_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_lb.plan import PoolPlan

HEADINGS = ("POOL", "NODE", "STATE", "KV", "WAITING", "RUNNING", "WEIGHT", "REASON")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns; the last column has no padding."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def table_of_nodes(pools: Sequence[PoolPlan], width: int | None = None) -> list[str]:
    """Return the nodes as lines. If a line is wider than `width` columns, the reasons get lines of their own."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for pool in pools:
        for node in pool.nodes:
            kv = "-" if node.kv_cache_usage is None else two_digits(node.kv_cache_usage)
            counts = ["-" if value is None else str(value) for value in (node.waiting, node.running)]
            rows.append((pool.name, node.name, node.state, kv, *counts, str(node.weight), node.reason))
    lines = aligned(rows)
    if width and max(map(len, lines)) > width:
        lines = aligned([row[1:-1] for row in rows])  # without the pool, too
        reasons = [f"{row[1]}: {row[-1]}" for row in rows[1:]]
        lines += ["", *reasons]
    held = [f"{pool.name}: {pool.held}" for pool in pools if pool.held]
    return lines + (["", *held] if held else [])
