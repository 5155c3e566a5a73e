"""From what happened to each request to the figures of a run, and from several runs to one row of a table."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GOOD_FIRST_TOKEN_SECONDS, GOOD_TOKEN_SECONDS = 2.0, 0.1


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds of the model.

    Attributes:
        at: when it was sent.
        first_token: seconds until the first token; None if none came.
        per_token: mean seconds per token after the first; None for an answer of one token.
        problem: None if every token came; "failed" without a token, "cut" in the middle.
        node: which node answered, as far as it is known.
    """

    at: float
    first_token: float | None = None
    per_token: float | None = None
    problem: str | None = None
    node: int | None = None

    @property
    def good(self) -> bool:
        """Whether it was answered in full and in time."""
        if self.problem or self.first_token is None or self.first_token > GOOD_FIRST_TOKEN_SECONDS:
            return False
        return self.per_token is None or self.per_token <= GOOD_TOKEN_SECONDS


@dataclass(slots=True, kw_only=True)
class Figures:
    """The figures of one run. Times to first token and per token in milliseconds of the model."""

    requests: int
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    tpot_p99: float
    goodput: float  # ratio of requests
    failed: int
    cut: int
    preemptions: int = 0
    reloads_per_hour: float = 0.0
    peak_draining: int = 0
    proxy_cpu_ms: float | None = None  # of the proxy's processes, per request
    balancer_cpu_ms: float | None = None  # of what decides weights, per request
    halved_after: float | None = None  # seconds until a slowed node's share of requests has fallen by half


def percentile(values: Sequence[float], ratio: float) -> float:
    """Return a percentile by linear interpolation; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = ratio * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(outcomes: Sequence[Outcome]) -> Figures:
    """Return the figures of requests. One without a first token counts as failed and in no percentile."""
    first = [1000 * each.first_token for each in outcomes if each.first_token is not None]
    per_token = [1000 * each.per_token for each in outcomes if each.per_token is not None]
    return Figures(
        requests=len(outcomes),
        ttft_p50=percentile(first, 0.5),
        ttft_p90=percentile(first, 0.9),
        ttft_p99=percentile(first, 0.99),
        tpot_p99=percentile(per_token, 0.99),
        goodput=sum(each.good for each in outcomes) / max(1, len(outcomes)),
        failed=sum(each.problem == "failed" for each in outcomes),
        cut=sum(each.problem == "cut" for each in outcomes),
    )


SHARE_WINDOW_SECONDS = 10


def seconds_until_halved(outcomes: Sequence[Outcome], node: int, since: float, until: float) -> float | None:
    """Return after how many seconds a node's share of new requests is half of what it was before `since`, or less.

    The share is that of the twenty seconds which begin then. None if it never is by `until`.
    """
    before = [each for each in outcomes if since - 120 <= each.at < since and each.node is not None]
    if not before:
        return None
    half = sum(each.node == node for each in before) / len(before) / 2
    at = since
    while at + SHARE_WINDOW_SECONDS <= until:
        window = [each for each in outcomes if at <= each.at < at + 2 * SHARE_WINDOW_SECONDS and each.node is not None]
        if window and sum(each.node == node for each in window) / len(window) <= half:
            return at - since
        at += 1
    return None


@dataclass(slots=True, frozen=True)
class Spread:
    """One figure over several runs."""

    mean: float
    low: float
    high: float


def spreads(runs: Sequence[Figures]) -> dict[str, Spread]:
    """Return each figure's mean and range over runs; figures that no run has are left out."""
    rows = [asdict(run) for run in runs]
    found = {}
    for each in fields(Figures):
        values = [row[each.name] for row in rows if row[each.name] is not None]
        if values:
            found[each.name] = Spread(statistics.fmean(values), min(values), max(values))
    return found
