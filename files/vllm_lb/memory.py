# SPDX-License-Identifier: Apache-2.0
"""What one tick remembers of each node for the next one. Times are seconds of the monotonic clock."""

import dataclasses
from dataclasses import MISSING
from typing import Any, Self

from vllm_lb.addresses import is_host, is_ip
from vllm_lb.causes import NodeCause, ScrapeCause
from vllm_lb.data import data
from vllm_lb.schema import build, choice, number, setting
from vllm_lb.settings import MAX_WEIGHT

MOST_FLAPS = 5
# Names of the release before the package, so that an upgrade keeps what was learned.
FORMER_NAMES = {"setbacks": "flap_count", "figures": "fingerprint", "moved_at": "changed_at"}


@data(kw_only=True)
class Means:
    """Moving averages (EWMA) of what a node did; numbers of requests are per engine."""

    speed: float = number(0, 2**53, 0.0)  # generated tokens per second and running request
    running: float = number(0, 2**53, 0.0)
    waiting: float = number(0, 2**53, 0.0)
    finished: float = number(0, 2**53, 0.0)  # requests that ended between two readings
    kv_cache_usage: float = number(0, 1, 0.0)  # ratio
    batch_share: float = number(0.01, 1, 1.0)  # how full the batch was on average, of what it was when it was read
    engines: float = number(1, 2**53, 1.0)

    @property
    def requests(self) -> float:
        """All requests: in a batch or queued."""
        return self.running + self.waiting

    def updated(self, new: Self, share: float) -> Self:
        """Return the averages after one more value, which counts `share` (0 to 1) of the result."""
        names = [each.name for each in dataclasses.fields(self)]
        return type(self)(**{name: (1 - share) * getattr(self, name) + share * getattr(new, name) for name in names})


@data(kw_only=True)
class Learned:
    """What the policy `capacity` remembers of a node."""

    at: float = number(0, 2**53)  # when the node was read last
    generation_tokens: int | None = number(0, 2**60, None)
    finished: int | None = number(0, 2**60, None)
    running: int | None = number(0, 2**60)
    waiting: int | None = number(0, 2**60, None)
    token_gaps: int | None = number(0, 2**60, None)
    token_gap_seconds: float | None = number(0, 2**53, None)
    claim: float | None = number(0, 2**53, None)  # the last speed that it claimed, if no engine has that speed
    readings: int = number(0, 2**53, 0)  # in the averages; 0 after a weight of the pool changed
    recent: Means = Means()
    longer: Means = Means()
    earned_weight: int = number(1, MAX_WEIGHT, MAX_WEIGHT)  # its weight, or the one before it left the rotation
    steps: int = number(0, 2, 0)  # of slow start that are left until it has its earned weight
    stepped_at: float | None = number(0, 2**53, None)  # when the weight of the last step was decided, or was not live
    slow_start_ends_at: float | None = number(0, 2**53, None)  # where nginx's Lua does the slow start


@data(kw_only=True)
class NodeMemory:
    """What is remembered of one node."""

    up: bool | None = None  # None: neither read nor down so far
    weight: int | None = number(0, MAX_WEIGHT, None)
    failures: int = number(0, 2**53, 0)  # scrapes without an answer, in a row
    successes: int = number(0, 2**53, 0)  # good scrapes, in a row
    read_at: float | None = number(0, 2**53, None)
    preemptions: int | None = number(0, 2**60, None)
    flap_count: int = number(0, MOST_FLAPS, 0)  # how often it went down lately
    fingerprint: str | None = None  # of its last reading
    changed_at: float | None = number(0, 2**53, None)  # when the fingerprint changed last
    address: str | None = setting("an IP address", is_ip, None)
    returned_at: float | None = number(0, 2**53, None)  # when it came back, if less than an interval ago
    host: str | None = setting("a host", is_host, None)  # the host name that had this address
    resolves: bool = True
    doubt: str | None = choice(*NodeCause, *ScrapeCause, default=None)  # what is not believed of its readings
    learned: Learned | None = None


def stored(record: Any) -> dict[str, Any]:
    """Return a record of this module as plain data, without the fields that have their defaults.

    So a version without a new field can read the record while the field has its default.
    """
    values = {each.name: (getattr(record, each.name), each.default) for each in dataclasses.fields(record)}
    return {
        name: stored(value) if dataclasses.is_dataclass(value) else value
        for name, (value, default) in values.items()
        if value != default
    }


def memory_of(raw: Any, where: str, problems: list[str]) -> NodeMemory | None:
    """Return a node's memory from JSON; None, and a line in `problems`, if it is damaged."""
    if isinstance(raw, dict):
        raw = {FORMER_NAMES.get(name, name): value for name, value in raw.items()}
    built = build(NodeMemory, raw, where, problems)
    return None if built is MISSING else built
