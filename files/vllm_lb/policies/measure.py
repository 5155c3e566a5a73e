# SPDX-License-Identifier: Apache-2.0
"""What a node did between two readings: its speed and its requests.

vLLM adds up the times from each token of a request to the next one. In an interval, their sum per second is the mean
number of requests that generate, and their number per sum is the speed of each. Two gauges that are read ten seconds
apart say neither: 40 short requests may have come and gone in between. Gauges count only where these times are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.growth import growth
from vllm_lb.memory import Means

if TYPE_CHECKING:
    from vllm_lb.memory import Learned
    from vllm_lb.observation import Reading
    from vllm_lb.policies import Observation

GAP_SECONDS = 60  # readings further apart are not compared
MOST_RUNNING = 10**4  # requests in the batch of an engine
# Tokens per second of one request. A step of an engine takes more than half a millisecond.
MAX_SPEED = 2000.0


def measured(seen: Observation, before: Learned, now: float) -> Means | None:
    """Return what a node did since the reading before, or None if the two readings cannot tell.

    The speed is what the node says. It may be more than MAX_SPEED, which no engine has.
    """
    reading, seconds = seen.reading, now - before.at
    is_frozen = reading.fingerprint == seen.was.fingerprint
    if not 0 < seconds <= GAP_SECONDS or is_frozen or reading.waiting is None:
        return None
    by_times = by_token_gaps(reading, before, seconds)
    found = by_times or by_gauges(reading, before, seconds)
    if found is None:
        return None
    running, speed = found
    share = share_of_batch(running, reading.running) if by_times else 1.0
    return Means(
        speed=min(2.0**53, speed),  # the largest value that memory.json may hold
        running=running / reading.engines,
        waiting=share * standing_queue(reading.waiting, before) / reading.engines,
        finished=(growth(before.finished, reading.finished, seconds, reading.engines) or 0) / reading.engines,
        kv_cache_usage=share * (reading.kv_cache_usage or 0.0),
        batch_share=share,
        engines=reading.engines,
    )


def standing_queue(waiting: int, before: Learned) -> int:
    """Return the requests that wait in both readings: a queue that only one of them has was a burst."""
    return waiting if before.waiting is None else min(waiting, before.waiting)


def share_of_batch(running: float, now: int | None) -> float:
    """Return how full the batch was on average, of what it is now: a ratio from 0.01 to 1.

    The queue and the KV cache are only known as they are now. If that is in a burst, they were smaller on average, by
    about the same ratio.
    """
    return min(1.0, max(0.01, running / now)) if now else 1.0


def by_token_gaps(reading: Reading, before: Learned, seconds: float) -> tuple[float, float] | None:
    """Return the mean number of running requests and the speed of each, from the times between tokens."""
    gaps = growth(before.token_gaps, reading.token_gaps, seconds, reading.engines)
    gap_seconds = growth(
        before.token_gap_seconds, reading.token_gap_seconds, seconds, reading.engines, most_per_second=MOST_RUNNING
    )
    return (gap_seconds / seconds, gaps / gap_seconds) if gaps and gap_seconds else None


def by_gauges(reading: Reading, before: Learned, seconds: float) -> tuple[float, float] | None:
    """Return the same from the gauges of the two readings and the tokens between them."""
    generated = growth(before.generation_tokens, reading.generation_tokens, seconds, reading.engines)
    if generated is None or before.running is None or reading.running is None:
        return None
    running = (before.running + reading.running) / 2
    return (running, generated / seconds / running) if running >= 1 else None
