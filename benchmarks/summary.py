"""From what happened to each request to the summary of a run, and from several runs to one row of a table.

Times that end in `_seconds` or stand in an Outcome are seconds of the model; those of a Summary are milliseconds of it.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A request is good if its first token comes within this time, and each further one within that, both in seconds.
GOOD_FIRST_TOKEN_SECONDS, GOOD_TOKEN_SECONDS = 2.0, 0.1


@dataclass(slots=True)
class Outcome:
    """How one request ended; times in seconds of the model.

    Attributes:
        at: when it was sent, since the start of the run.
        first_token: seconds from then to the first token; None if none came.
        per_token: mean seconds per token after the first; None for an answer of one token.
        whole_answer: of an answer that is not streamed, seconds to its end; first_token and per_token are None then.
        tokens: how many it has.
        problem: None if every token came, "failed" if no token came, "cut" if some are missing.
        node: index of the node that answered; None if unknown.
        conversation: whose turn it was.
    """

    at: float
    first_token: float | None = None
    per_token: float | None = None
    problem: str | None = None
    node: int | None = None
    whole_answer: float | None = None
    tokens: int = 0
    conversation: int = -1

    @property
    def good(self) -> bool:
        """Whether it was answered in full and in time; one that is not streamed has the time of all its tokens."""
        if self.problem:
            return False
        if self.whole_answer is not None:
            return self.whole_answer <= GOOD_FIRST_TOKEN_SECONDS + GOOD_TOKEN_SECONDS * (self.tokens - 1)
        if self.first_token is None or self.first_token > GOOD_FIRST_TOKEN_SECONDS:
            return False
        return self.per_token is None or self.per_token <= GOOD_TOKEN_SECONDS


@dataclass(slots=True, kw_only=True)
class Summary:
    """One run in numbers. Result files have these names as keys.

    Attributes:
        requests: how many were sent and count.
        ttft_p50, ttft_p90, ttft_p99: time to first token, ms.
        tpot_p99: mean time per further token of a request, ms.
        goodput: share of requests that were good, 0 to 1.
        failed, cut: requests that ended so, see Outcome.problem.
        preemptions: of all nodes.
        reloads_per_hour: reloads of nginx per hour of the model.
        peak_draining: most sets of old workers that had requests at one time.
        proxy_cpu_ms: processor time of the proxy's processes per request, real ms; None if not measured.
        balancer_cpu_ms: the same of the program that decides weights.
        at_home: share of later turns that went to the node of the turn before, 0 to 1; None without such turns.
        halved_after: seconds until a slowed node's share of requests has fallen by half; None if that does not apply.
    """

    requests: int
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    tpot_p99: float
    goodput: float
    failed: int
    cut: int
    preemptions: int = 0
    reloads_per_hour: float = 0.0
    peak_draining: int = 0
    proxy_cpu_ms: float | None = None
    balancer_cpu_ms: float | None = None
    at_home: float | None = None
    halved_after: float | None = None

    def __str__(self) -> str:
        """Return what tells at a glance how the run went."""
        return f"p50 {self.ttft_p50:.0f} p99 {self.ttft_p99:.0f} ms, {self.failed} failed, {self.cut} cut"


def percentile(values: Sequence[float], ratio: float) -> float:
    """Return a percentile by linear interpolation between closest ranks (numpy's default); 0 of no values.

    `ratio`: 0 to 1, 0.99 for the 99th percentile.
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    position = ratio * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Return the summary of a run's requests. One without a first token is in no percentile.

    So the percentiles leave out answers that are not streamed: nobody sees their first tokens.
    """
    first = [1000 * each.first_token for each in outcomes if each.first_token is not None]
    per_token = [1000 * each.per_token for each in outcomes if each.per_token is not None]
    return Summary(
        requests=len(outcomes),
        ttft_p50=percentile(first, 0.5),
        ttft_p90=percentile(first, 0.9),
        ttft_p99=percentile(first, 0.99),
        tpot_p99=percentile(per_token, 0.99),
        goodput=sum(each.good for each in outcomes) / max(1, len(outcomes)),
        failed=sum(each.problem == "failed" for each in outcomes),
        cut=sum(each.problem == "cut" for each in outcomes),
    )


def share_at_home(outcomes: Sequence[Outcome], since: float) -> float | None:
    """Return the share of turns from `since` on that went to the node of their conversation's turn before.

    None if there are none: first turns do not count, nor turns whose node, or that of the turn before, is unknown.
    """
    homes: dict[int, int] = {}
    same = total = 0
    for each in sorted(outcomes, key=lambda outcome: outcome.at):
        if each.node is None:
            continue
        if each.conversation in homes and each.at >= since:
            total += 1
            same += homes[each.conversation] == each.node
        homes[each.conversation] = each.node
    return same / total if total else None


BEFORE_SECONDS, WINDOW_SECONDS = 120, 20  # of the share before, and of the share after


def seconds_until_halved(outcomes: Sequence[Outcome], node: int, since: float, until: float) -> float | None:
    """Return after how many seconds a node's share of new requests is at most half of what it was before `since`.

    The share before is that of BEFORE_SECONDS. The share after is that of the WINDOW_SECONDS that begin at the returned
    moment. None if there was no share before, or it has not halved by `until`.
    """
    known = [each for each in outcomes if each.node is not None]
    before = [each for each in known if since - BEFORE_SECONDS <= each.at < since]
    if not before:
        return None
    half = sum(each.node == node for each in before) / len(before) / 2
    at = since
    while at + WINDOW_SECONDS / 2 <= until:
        window = [each for each in known if at <= each.at < at + WINDOW_SECONDS]
        if window and sum(each.node == node for each in window) / len(window) <= half:
            return at - since
        at += 1
    return None


@dataclass(slots=True, frozen=True)
class Spread:
    """One number over several runs."""

    mean: float
    low: float
    high: float


def spreads(runs: Sequence[Summary]) -> dict[str, Spread]:
    """Return mean and range over runs of each field of Summary; a field that no run has is left out."""
    rows = [asdict(run) for run in runs]
    found = {}
    for each in fields(Summary):
        values = [row[each.name] for row in rows if row[each.name] is not None]
        if values:
            found[each.name] = Spread(statistics.fmean(values), min(values), max(values))
    return found
