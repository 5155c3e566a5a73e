# SPDX-License-Identifier: Apache-2.0
"""Reading the history. An unprivileged user writes it and root reads it: a row that no tick could write is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vllm_lb.addresses import is_ip
from vllm_lb.causes import DeferredCause, FailureCause, NodeCause, ScrapeCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import read_file
from vllm_lb.history import MAX_SEGMENT_BYTES, History
from vllm_lb.journal import WARNING, log
from vllm_lb.outcome import OUTCOMES
from vllm_lb.plan import STATES, TIME
from vllm_lb.settings import MAX_ENGINES, MAX_WEIGHT
from vllm_lb.text import PRINTABLE, printable, seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from enum import StrEnum
    from pathlib import Path

    from vllm_lb.outcome import Status
    from vllm_lb.state import State

Check = Callable[[Any], bool]


def in_range(low: float, high: float, kind: Any = int) -> Check:
    """Return a function that tells whether a value is a number within [low, high], or None."""

    def check(value: Any) -> bool:
        return value is None or (isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high)

    return check


def one_of(codes: type[StrEnum]) -> Check:
    """Return a function that tells whether a value is one of some codes, or None."""
    known = {None, *(str(code) for code in codes)}
    return lambda value: (value is None or isinstance(value, str)) and value in known


def is_printable(value: Any) -> bool:
    """Tell whether a value is a text fit for a terminal, or None."""
    return value is None or (isinstance(value, str) and bool(re.fullmatch(PRINTABLE, value)))


# schema.build() is too slow for a million rows.
COUNT = in_range(0, 2**60)
CHECKS: dict[str, Check] = {
    "state": lambda v: v in STATES,
    "weight": lambda v: v is not None and in_range(0, MAX_WEIGHT)(v),
    "kv_cache_usage": in_range(0, 1, (int, float)),
    **dict.fromkeys(("waiting", "running", "preemptions", "prompt_tokens", "generation_tokens", "finished"), COUNT),
    **dict.fromkeys(("token_gaps", "kv_cache_tokens"), COUNT),
    "token_gap_seconds": in_range(0, 2**53, (int, float)),
    "engines": in_range(1, MAX_ENGINES),
    "awake": lambda v: v is None or isinstance(v, bool),
    "seconds": in_range(0, 86400, (int, float)),
    "address": lambda v: v is None or (isinstance(v, str) and is_ip(v)),
    "answered": lambda v: v is None or isinstance(v, bool),
    **dict.fromkeys(("error", "unresolved", "reason"), is_printable),
    "cause": one_of(NodeCause),
    "error_cause": one_of(ScrapeCause),
}
# Histories of former versions lack them.
NEW_COLUMNS = {"cause", "error_cause", "token_gaps", "token_gap_seconds", "kv_cache_tokens"}
NEEDED = ("engines", "awake")  # both, or none


@data()
class Past:
    """One tick of the history."""

    at: str  # RFC 3339
    now: float  # seconds of the monotonic clock
    applied: bool  # whether what the tick before decided was live
    drained: frozenset[str]
    before: dict[str, Any]  # the result of the tick before; empty if that tick changed nothing
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Any]]  # by node; columns missing at the end of a row are None
    memory: Mapping[str, Any] | None  # at the beginning of the tick, if it is the first of a segment

    @property
    def seconds(self) -> float:
        """The time of the tick, in seconds since 1970."""
        return seconds_of(self.at)

    def node(self, name: str) -> dict[str, Any] | None:
        """Return a node's values by column, or None if there are none, or damaged ones."""
        if name not in self.rows:
            return None
        row = dict.fromkeys((*self.columns, *NEW_COLUMNS)) | dict(zip(self.columns, self.rows[name], strict=False))
        is_whole = len({row[each] is None for each in NEEDED}) == 1
        return row if is_whole and all(check(row[column]) for column, check in CHECKS.items()) else None


def read_history(files: Sequence[Path]) -> Iterator[Past]:
    """Yield the ticks of history files, in their order.

    A damaged file is left out with a warning. A line that a full disk tore is left out without one.
    """
    known: set[str] = set()  # a run that is killed while it begins a segment leaves the former segment twice
    for path in files:
        lines = lines_of(path)
        head = (parsed(lines[0]) if lines else None) or {}
        columns = head.get("columns")
        is_ours = isinstance(columns, list) and all(isinstance(each, str) for each in columns)
        if head.get("version") != 1 or not is_ours or not CHECKS.keys() - NEW_COLUMNS <= set(columns or ()):
            log(WARNING, f"{path}: left out: expected a history file with version 1 and columns in its first line")
            continue
        memory = head.get("memory")
        for line in lines[1:]:
            past = past_tick(parsed(line) or {}, columns or [], memory)
            if past and past.at not in known:
                known.add(past.at)
                memory = None
                yield past


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a history file; none of one that cannot be read, or is too large to be one."""
    limit = 2 * MAX_SEGMENT_BYTES
    try:
        content = read_file(path, max_bytes=limit)
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(limit + 1)
        if len(content) <= limit:
            return content.splitlines()
        log(WARNING, f"{path}: left out: larger than {limit} bytes")
    except FileNotFoundError:
        log(WARNING, f"{path}: there is no such file")
    except (OSError, zlib.error, EOFError, FailureError) as error:
        log(WARNING, f"{path}: {printable(str(error))}")
    return []


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, or None if the line has none."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


def past_tick(line: dict[str, Any], columns: Sequence[str], memory: Any) -> Past | None:
    """Return the tick that a line of the history is, or None if it is damaged."""
    try:
        past = Past(
            at=line["at"],
            now=float(line["now"]),
            applied=line.get("applied", line.get("settled")) is True,  # the release before the package wrote `settled`
            drained=frozenset(map(str, line.get("drained", ()))),
            before=outcome_before(line.get("before")),
            columns=columns,
            rows={str(name): list(row) for nodes in line["pools"].values() for name, row in nodes.items()},
            memory=memory if isinstance(memory, dict) else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return past if is_time(past.at) and 0 <= past.now < 2**53 else None


def is_time(value: Any) -> bool:
    """Tell whether a value is a time that every function of datetime takes."""
    return isinstance(value, str) and bool(re.fullmatch(TIME, value)) and 0 < seconds_of(value) < 2**33


def outcome_before(found: Any) -> dict[str, Any]:
    """Return the result of the tick before from a line, or nothing if it is damaged."""
    names = ("at", "outcome", "error", "error_cause", "deferred", "deferred_cause")
    before = {name: found.get(name) for name in names} if isinstance(found, dict) else {}
    error = before.get("error")
    before["error"] = printable(error, 2000) if isinstance(error, str) else None
    is_whole = (
        is_time(before.get("at"))
        and before.get("outcome") in OUTCOMES
        and is_printable(before["deferred"])
        and one_of(DeferredCause)(before["deferred_cause"])
        and one_of(FailureCause)(before["error_cause"])
    )
    return before if is_whole else {}


def files_of(state: State) -> list[Path]:
    """Return the history files of this host, oldest first."""
    history = History(state.directory, 0)
    try:
        return [*history.segments(), *([history.current] if history.current.is_file() else [])]
    except OSError as error:
        problem = f"{state.directory} cannot be read: {error.strerror}"
        raise FailureError(FailureCause.FILE_UNREADABLE, problem) from error


def ticks_since(state: State, since: float) -> Iterator[Past]:
    """Yield the ticks since a time in seconds since 1970; segments that ended before it are not read."""
    # A file was last written to when its last tick was added, or, compressed, within the hour after that.
    files = []
    for path in files_of(state):
        with contextlib.suppress(OSError):  # a tick may just have removed it
            files += [path] if path.lstat().st_mtime >= since else []
    return (past for past in read_history(files) if past.seconds >= since)


def outcomes(before: Iterable[Mapping[str, Any]], last: Status | None) -> dict[str, Mapping[str, Any]]:
    """Return the result of each tick that tried to change something, by its time.

    `before` has the results of ticks, each recorded by the tick after it. `last` has the result of the last tick.
    """
    found = {str(each["at"]): each for each in before if "at" in each}
    if last and last.outcome != "unchanged":
        found[last.decided_at] = {name: getattr(last, name) for name in ("outcome", "error", "deferred")}
    return found


def local_time(at: str) -> str:
    """Return an RFC 3339 time in the local time zone."""
    return datetime.fromtimestamp(seconds_of(at)).astimezone().strftime("%m-%d %H:%M:%S")
