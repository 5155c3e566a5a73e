# SPDX-License-Identifier: Apache-2.0
"""How values are written: for one line of a log, a status file or a terminal, and for times."""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any

PRINTABLE = r"[ -~]{0,300}"
LONGEST_VALUE = 60  # characters of a quoted value in a message


def printable(value: str, limit: int = 120) -> str:
    """Return a text of printable ASCII, at most `limit` characters long."""
    return re.sub(r"[^ -~]", "?", value)[:limit]


def quoted(value: Any) -> str:
    """Return a value for a message, at most LONGEST_VALUE characters long."""
    try:
        shown = repr(value)
    except RecursionError:  # somebody nested it a thousand times
        shown = type(value).__name__
    return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 3] + "..."


def two_digits(ratio: float) -> str:
    """Return a ratio with two digits, rounded down: 0.919 must not read as a limit of 0.92 that was reached."""
    return f"{math.floor(ratio * 100) / 100:.2f}"


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def timestamp(at: float | None = None) -> str:
    """Return a time in seconds since 1970, or the present one, as RFC 3339 has it, in UTC, with milliseconds."""
    return (datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)).isoformat(timespec="milliseconds")


def seconds_of(time: str) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0 for a text that is no time."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return 0.0
