"""Random lengths and arrival times, from which the workloads are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

MAX_TOKENS = 14050  # the longest prompt of Azure's trace of 2023
Z90, Z99 = 1.2815516, 2.3263479  # percentiles of the standard normal distribution


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution of token counts by its mean and 99th percentile; none is above `most`."""

    mean: float
    p99: float
    most: int = MAX_TOKENS

    @classmethod
    def through(cls, median: float, p90: float, most: int = MAX_TOKENS) -> Self:
        """Return the one with this median and this 90th percentile; the second at most 19 times the first."""
        sigma = math.log(p90 / median) / Z90
        return cls(median * math.exp(sigma * sigma / 2), median * math.exp(Z99 * sigma), most)

    def draw(self, chance: random.Random) -> int:
        """Draw a count from 1 to `most`.

        With ln X ~ N(mu, sigma²): mean = exp(mu + sigma²/2) and p99 = exp(mu + z sigma), z the 99th percentile of the
        standard normal distribution. So ln(p99 / mean) = z sigma - sigma²/2, and the smaller solution for sigma is
        used.
        """
        sigma = Z99 - math.sqrt(Z99 * Z99 - 2 * math.log(self.p99 / self.mean))
        mu = math.log(self.mean) - sigma * sigma / 2
        return min(self.most, max(1, round(chance.lognormvariate(mu, sigma))))


def arrivals(rate: float, cv: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """Yield arrival times: gamma-distributed gaps, as vLLM's own benchmark draws them (its burstiness is 1 / cv²)."""
    shape = 1 / cv**2
    at = chance.gammavariate(shape, 1 / (rate * shape))
    while at < seconds:
        yield at
        at += chance.gammavariate(shape, 1 / (rate * shape))
