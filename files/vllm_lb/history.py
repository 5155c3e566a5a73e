# SPDX-License-Identifier: Apache-2.0
"""The history: recent ticks, one a line, for `explain`, `replay` and the status page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Any

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import read_file, write_atomically
from vllm_lb.memory import NodeMemory, stored
from vllm_lb.observation import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from vllm_lb.observation import Sample
    from vllm_lb.outcome import Outcome
    from vllm_lb.plan import NodePlan, Plan

SEGMENT_SECONDS = 3600
MAX_SEGMENT_BYTES = 2**25
HEAD = b'{"version":1,'
# The columns of a node's row, in this order. A reader uses the order that the head of a file names.
READING = tuple(each.name for each in dataclasses.fields(Reading))
COLUMNS = (
    *("state", "weight"),
    *READING,
    *("seconds", "address", "answered", "error", "unresolved", "reason", "cause", "error_cause"),
)


@data()
class Tick:
    """All that one `collect` saw and decided."""

    now: float  # seconds of the monotonic clock
    samples: Mapping[str, Sample]
    memory: Mapping[str, NodeMemory]  # at the beginning of this tick
    drained: AbstractSet[str]
    last: Outcome | None  # the result of the tick before
    applied: bool  # whether the decision of the tick before is live; True for the first tick
    plan: Plan
    after: Mapping[str, NodeMemory]  # at the end of this tick


@data()
class History:
    """The files of the history.

    They are segments of an hour at most. The present one is plain text; the earlier ones are compressed and numbered.
    The oldest are removed as soon as all together would be larger than `max_bytes`.
    """

    directory: Path
    max_bytes: int

    @property
    def current(self) -> Path:
        """The segment that the next tick is added to."""
        return self.directory / "history.jsonl"

    def segments(self) -> list[Path]:
        """Return the earlier segments, oldest first."""
        return [path for _, path in self.numbered()]

    def numbered(self) -> list[tuple[int, Path]]:
        """Return the earlier segments with their numbers, oldest first."""
        name = re.compile(r"history-(\d{6,18})\.jsonl\.gz")
        return sorted(
            (int(match[1]), path) for path in self.directory.iterdir() if (match := name.fullmatch(path.name))
        )

    def add(self, tick: Tick) -> None:
        """Append a tick."""
        try:
            if self.max_bytes and not self.has_room(time.time()):
                self.begin_segment(tick.memory)
            if self.max_bytes:
                self.append(json.dumps(line_of(tick), separators=(",", ":")))
            else:
                self.tidy(keep_bytes=0)
        except OSError as error:
            problem = f"{self.current} cannot be written: {error.strerror}"
            raise FailureError(FailureCause.FILE_UNWRITABLE, problem) from error

    def has_room(self, now: float) -> bool:
        """Tell whether the present segment is a file of ours, was begun in this hour, and is not too large."""
        with contextlib.suppress(FileNotFoundError):
            found = self.current.lstat()
            is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
            is_of_this_hour = found.st_mtime // SEGMENT_SECONDS == now // SEGMENT_SECONDS
            return is_ours and is_of_this_hour and found.st_size < min(self.max_bytes // 5, MAX_SEGMENT_BYTES)
        return False

    def begin_segment(self, memory: Mapping[str, NodeMemory]) -> None:
        """Compress the present segment and begin a new one. Its head has the memory, from which a replay can begin."""
        import gzip

        content, previous = b"", None
        with contextlib.suppress(FileNotFoundError, FailureError):  # a segment that cannot be read is dropped
            content = read_file(self.current, max_bytes=2 * MAX_SEGMENT_BYTES)
        if content.startswith(HEAD):
            newest = max((number for number, _ in self.numbered()), default=0)
            previous = f"history-{newest + 1:06d}.jsonl.gz"
            write_atomically(self.directory / previous, gzip.compress(content, 6), 0o644, sync=False)
        self.tidy(keep_bytes=self.max_bytes * 4 // 5)
        known = {name: stored(each) for name, each in memory.items()}
        head = {"version": 1, "previous": previous, "columns": COLUMNS, "memory": known}
        write_atomically(self.current, json.dumps(head, separators=(",", ":")) + "\n", 0o644, sync=False)

    def tidy(self, keep_bytes: int) -> None:
        """Remove the oldest segments until the others are small enough; with 0, all of them."""
        left = keep_bytes
        for path in reversed(self.segments()):
            left -= path.lstat().st_size
            if left < 0:
                path.unlink()
        if not keep_bytes:
            self.current.unlink(missing_ok=True)

    def append(self, line: str) -> None:
        """Append a line. If a full disk cut the line before it short, the two are kept apart."""
        handle = os.open(self.current, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            file.write(("\n" * is_torn + line + "\n").encode())


def line_of(tick: Tick) -> dict[str, Any]:
    """Return what the history keeps of a tick: its inputs, its decision, and the result of the tick before."""
    line: dict[str, Any] = {"at": tick.plan.decided_at, "now": round(tick.now, 3), "applied": tick.applied}
    if tick.drained:
        line["drained"] = sorted(tick.drained)
    if tick.last and (tick.last.outcome != "unchanged" or tick.last.error):
        names = ("outcome", "generation", "error", "error_cause", "deferred", "deferred_cause")
        line["before"] = {"at": tick.last.decided_at} | {name: getattr(tick.last, name) for name in names}
    line["pools"] = {
        pool.name: {
            node.name: row_of(node, tick.samples[node.name], tick.memory.get(node.name, NodeMemory()))
            for node in pool.nodes
        }
        for pool in tick.plan.pools
    }
    return line


def row_of(node: NodePlan, sample: Sample, was: NodeMemory) -> list[Any]:
    """Return what the history keeps of a node: the COLUMNS, without those at the end that are None."""
    is_news = node.weight != node.previous_weight or node.state != "up" or not was.successes
    row = [node.state, node.weight]
    row += [getattr(sample.reading, name) if sample.reading else None for name in READING]
    row += [round(sample.seconds, 4), sample.address, None if sample.answered else False]
    row += [sample.error, sample.unresolved]
    row += [node.reason, node.cause] if is_news else [None, None]
    row += [sample.cause]
    while row[-1] is None:
        row.pop()
    return row
