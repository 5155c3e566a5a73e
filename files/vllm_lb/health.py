# SPDX-License-Identifier: Apache-2.0
"""Whether a node is up: good and failed scrapes, flapping, frozen nodes. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm_lb.growth import growth
from vllm_lb.memory import MOST_FLAPS, NodeMemory

if TYPE_CHECKING:
    from vllm_lb.observation import Reading, Sample
    from vllm_lb.settings import Health

SCRAPES_TO_FORGET = 30  # a flap, or a doubt


def remembered(was: NodeMemory, sample: Sample, health: Health, now: float) -> NodeMemory:
    """Return a node's memory after one more scrape, which may move the node between up and down.

    `now` is in seconds of the monotonic clock.
    """
    # The monotonic clock starts again at boot: a time in the future is from before it.
    read_at, changed_at = (None if at is None else min(at, now) for at in (was.read_at, was.changed_at))
    reading = sample.reading
    if reading and reading.awake:
        successes = was.successes + 1
        is_up = was.up is not False or successes >= good_scrapes_needed(was, health)
        is_working = reading.requests > 0 and reading.generation_tokens is not None
        return NodeMemory(
            up=is_up,
            successes=successes,
            read_at=now,
            preemptions=was.preemptions if reading.preemptions is None else reading.preemptions,
            flap_count=max(0, was.flap_count - (successes % SCRAPES_TO_FORGET == 0)),
            fingerprint=reading.fingerprint,
            changed_at=changed_at if is_working and reading.fingerprint == was.fingerprint else now,
            address=sample.address,
            returned_at=now if is_up and was.up is False else was.returned_at,
        )
    failures = 0 if sample.answered else was.failures + 1
    up = False if reading or failures >= health.fall else was.up
    return NodeMemory(
        up=up,
        failures=failures,
        read_at=read_at,
        preemptions=reading.preemptions if reading and reading.preemptions is not None else was.preemptions,
        flap_count=min(MOST_FLAPS, was.flap_count + (was.up is True and up is False)),
        fingerprint=was.fingerprint,
        changed_at=changed_at,
        address=sample.address,
        returned_at=was.returned_at if up else None,
    )


def good_scrapes_needed(was: NodeMemory, health: Health) -> int:
    """Return how many good scrapes in a row bring a node back: each flap beyond the first doubles them.

    Envoy's outlier detection lengthens each ejection in the same way. With the balancer `upstream` each flap costs two
    reloads.
    """
    return int(health.rise * 2 ** max(0, was.flap_count - 1))


def frozen_for_seconds(memory: NodeMemory, health: Health) -> float | None:
    """Return for how many seconds no metric of a node with requests has changed; None if that is not yet suspicious."""
    still = (memory.read_at or 0) - (memory.changed_at or 0)
    return still if still > health.stale_after_seconds else None


def preemptions_delta(was: NodeMemory, reading: Reading, now: float) -> int | None:
    """Return new preemptions; 0 on first sight and when the counter started again, None if the node does not say.

    `now` is in seconds of the monotonic clock.
    """
    if reading.preemptions is None:
        return None
    # The monotonic clock starts again at boot: how long ago a time in the future was is not known.
    seconds = now - was.read_at if was.read_at is not None and was.read_at < now else math.inf
    return int(growth(was.preemptions, reading.preemptions, seconds, reading.engines) or 0)
