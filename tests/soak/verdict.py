"""Which failed requests the faults of a soak explain."""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.soak.schedule import DYING, EVERYWHERE, FAST_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.soak.clients import Answer
    from tests.soak.schedule import Event

    Entries = Mapping[str, Mapping[str, Any]]  # of the access log, by request id

# After these statuses the role's nginx tries another node, for so long. nginx itself says 502 if a connection breaks.
TRIED_AGAIN, TRIED_AGAIN_WITHIN_SECONDS = {"502", "503"}, 30
NOT_CONNECTED = "-"  # in the log, the connect time of a try that got no connection
# A node that is well again is asked at once. A request that was under way may still fail.
ASKED_AGAIN_WITHIN_SECONDS = 1


@dataclass
class Outage:
    """A fault of a node that its clients can see, from when to when on the monotonic clock."""

    event: Event
    address: str
    began: float
    ended: float = math.inf

    def meets(self, began: float, ended: float) -> bool:
        """Tell whether the fault was on at some time between two times."""
        return self.began <= ended and began <= self.ended


@dataclass
class Verdict:
    """What was wrong when, and what may fail then."""

    outages: list[Outage] = field(default_factory=list)
    rotations: list[tuple[float, frozenset[str]]] = field(default_factory=list)

    def unexplained(self, failed: list[Answer], entries: Entries) -> list[str]:
        """Return a line for each failed request that no faulty node explains."""
        return [
            f"{answer} {entries.get(answer.request_id)} during "
            f"{[str(each.event) for each in self.outages if each.meets(answer.began, answer.ended)]}"
            for answer in failed
            if answer.request_id not in entries or not self.is_explained(answer, entries[answer.request_id])
        ]

    def is_explained(self, answer: Answer, entry: Mapping[str, Any]) -> bool:
        """Tell whether a failed request reached only nodes with a fault.

        Where nginx tries another node, all nodes in rotation must have had a fault then or just before.
        """
        tried_again = (
            last(entry["upstream_status"]) in TRIED_AGAIN or last(entry["upstream_connect_time"]) == NOT_CONNECTED
        )
        if not tried_again or entry["request_time"] >= TRIED_AGAIN_WITHIN_SECONDS:
            return self.was_out(last(entry["upstream_addr"]), answer.began, answer.ended)
        began = answer.began - ASKED_AGAIN_WITHIN_SECONDS
        return any(
            all(self.was_out(address, began, answer.ended) for address in rotation)
            for rotation in self.rotations_between(began, answer.ended)
        )

    def most_drawn(self, failed: list[Answer], entries: Entries) -> int:
        """Return the largest number of requests that failed at one node during one of its faults with fast errors."""
        drawn = [0]
        for outage in self.outages:
            if outage.event.what in FAST_ERRORS | DYING:
                meanwhile = [each for each in failed if outage.meets(each.began, each.ended)]
                reached = [last(entries[each.request_id]["upstream_addr"]) for each in meanwhile if each.request_id]
                drawn.append(reached.count(outage.address))
        return max(drawn)

    def longest_return(self, answers: list[Answer]) -> float:
        """Return the longest time between the end of a fault of all nodes and the end of its last failed request.

        Failures count until the first request that begins after the end of the fault and is answered.
        """
        longest = 0.0
        for ended in [each.ended for each in self.outages if each.event.what in EVERYWHERE]:
            after = sorted((each for each in answers if each.began > ended), key=lambda each: each.began)
            good = next((each.ended for each in after if each.problem is None), math.inf)
            longest = max(longest, *(each.ended - ended for each in after if each.problem and each.ended < good), 0.0)
        return longest

    def was_out(self, address: str, began: float, ended: float) -> bool:
        """Tell whether a node had a fault that its clients could see at some time between two."""
        return any(each.address == address and each.meets(began, ended) for each in self.outages)

    def rotations_between(self, began: float, ended: float) -> list[frozenset[str]]:
        """Return the sets of nodes that were in the upstream file at some time between two."""
        times = [time for time, _ in self.rotations]
        first, last = bisect.bisect(times, began) - 1, bisect.bisect(times, ended)
        return [rotation for _, rotation in self.rotations[max(0, first) : last + 1]]


def last(values: str) -> str:
    """Return the last try's value of a field of the access log."""
    return re.split("[,:] ", values)[-1]
