# SPDX-License-Identifier: Apache-2.0
"""How far a counter of a node grew. Pure."""

from __future__ import annotations

# A step of an engine takes at least a millisecond and moves at most a thousand requests by a token.
MOST_PER_SECOND = 10**6  # of one engine


def growth(
    before: float | None, now: float | None, seconds: float, engines: int, most_per_second: float = MOST_PER_SECOND
) -> float | None:
    """Return by how much a counter grew within these seconds; None if that is not known.

    The growth of a counter that started again is not known. Such a counter either went backwards, or it went further
    than `engines` engines can go in that time: another process answers, and its counter has another beginning.
    """
    if before is None or now is None or not 0 <= now - before <= seconds * engines * most_per_second:
        return None
    return now - before
