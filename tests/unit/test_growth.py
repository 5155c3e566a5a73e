"""How far a counter grew: not backwards, and not further than any engine can go."""

from __future__ import annotations

import math

import pytest

from vllm_lb.growth import growth


@pytest.mark.parametrize(
    ("before", "now", "seconds", "engines", "expected"),
    [
        (5, 9, 10, 1, 4),
        (5, 5, 10, 1, 0),
        (None, 9, 10, 1, None),  # first sight
        (5, None, 10, 1, None),  # the node does not say
        (9, 5, 10, 1, None),  # backwards: it began again
        (0, 10**7, 10, 1, 10**7),
        (0, 10**7 + 1, 10, 1, None),  # a million tokens per second and engine are more than any has
        (0, 10**7 + 1, 10, 2, 10**7 + 1),
        (0, 10**7 + 1, math.inf, 1, 10**7 + 1),  # nobody knows how long ago the other reading was
        (0, 5, 0, 1, None),
    ],
)
def test_growth(before: float | None, now: float | None, seconds: float, engines: int, expected: float | None) -> None:
    assert growth(before, now, seconds, engines) == expected
