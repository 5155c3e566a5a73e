# SPDX-License-Identifier: Apache-2.0
"""What people look at: the status of all nodes, why a weight moved, and what other settings would have done.

`vllm-nginx-lb status`, `explain` and `replay`, kept out of vllm_nginx_lb.py because a tick, which reads that file
anew every few seconds, needs none of it. All three read what ticks have left in the state directory, and write nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import itertools
import json
import math
import re
import shutil
import sys
import time
import zlib
from dataclasses import MISSING, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml

from vllm_nginx_lb import (
    EXIT_USAGE,
    LIVE,
    MAX_LINES,
    MAX_SEGMENT_BYTES,
    MAX_WEIGHT,
    OUTCOMES,
    PRINTABLE,
    READING,
    STATES,
    TIME,
    WARNING,
    Config,
    FailureError,
    History,
    NodeMemory,
    Reading,
    Sample,
    build,
    check_config,
    decide,
    generation_for,
    is_ip,
    load_template,
    log,
    membership,
    printable,
    read_file,
    read_yaml,
    reason_to_wait,
    render,
    seconds_of,
    shown_ratio,
    table,
    template_context,
    too_old,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from rich.console import Console

    from vllm_nginx_lb import PoolPlan, State, Status

HOUR_SECONDS = 3600
NARROW_COLUMNS = 100  # of a terminal: with fewer, reasons get a line of their own


# --- History: what ticks have written down -------------------------------------------------------------


def in_range(low: float, high: float, kind: Any = int) -> Callable[[Any], bool]:
    """Return what tells whether a value is a number within [low, high], or None."""

    def check(value: Any) -> bool:
        return value is None or (isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high)

    return check


def is_printable(value: Any) -> bool:
    """Tell whether a value is a text fit for a terminal, or None."""
    return value is None or (isinstance(value, str) and bool(PRINTABLE.fullmatch(value)))


# An unprivileged user writes the history, and root reads it: nothing is believed of a row that a tick could not have
# written. Not by build(), which is for a file, not for a million rows.
COUNT = in_range(0, 2**60)
CHECKS: dict[str, Callable[[Any], bool]] = {
    "state": lambda v: v in STATES,
    "weight": lambda v: v is not None and in_range(0, MAX_WEIGHT)(v),
    "kv_cache_usage": in_range(0, 1, (int, float)),
    **dict.fromkeys(("waiting", "running", "preemptions", "prompt_tokens", "generation_tokens", "finished"), COUNT),
    "engines": in_range(1, MAX_LINES),
    "awake": lambda v: v is None or isinstance(v, bool),
    "seconds": in_range(0, 86400, (int, float)),
    "address": lambda v: v is None or (isinstance(v, str) and is_ip(v)),
    "answered": lambda v: v is None or isinstance(v, bool),
    **dict.fromkeys(("error", "unresolved", "reason"), is_printable),
}
NEEDED = ("kv_cache_usage", "waiting", "running", "preemptions", "engines", "awake")  # all of them, or none


@dataclass(frozen=True, slots=True)
class Past:
    """One tick of the history."""

    at: str  # RFC 3339
    now: float  # seconds of the monotonic clock
    settled: bool
    drained: frozenset[str]
    before: dict[str, Any]  # what became of the tick before; empty if nothing was to be done
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Any]]  # of each node; what is missing at the end of one is None
    memory: Mapping[str, Any] | None  # what the tick began with, where it is the first of a segment

    @property
    def seconds(self) -> float:
        """When it was, in seconds since 1970."""
        return seconds_of(self.at)

    def node(self, name: str) -> dict[str, Any] | None:
        """Return a node's values by column, or None if there are none, or damaged ones."""
        if name not in self.rows:
            return None
        row = dict.fromkeys(self.columns) | dict(zip(self.columns, self.rows[name], strict=False))
        is_whole = len({row[each] is None for each in NEEDED}) == 1
        return row if is_whole and all(check(row[column]) for column, check in CHECKS.items()) else None


def read_history(files: Sequence[Path]) -> Iterator[Past]:
    """Yield the ticks of history files, in their order.

    What is damaged is left out: files with a warning, and without one lines that a full disk tore off.
    """
    known: set[str] = set()  # a run that is killed as it begins a segment leaves the ticks of the last one twice
    for path in files:
        lines = lines_of(path)
        head = (parsed(lines[0]) if lines else None) or {}
        columns = head.get("columns")
        is_ours = isinstance(columns, list) and all(isinstance(each, str) for each in columns)
        if head.get("version") != 1 or not is_ours or not CHECKS.keys() <= set(columns or ()):
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
    """Return the lines of a history file; none of one that cannot be read, or is larger than one can be."""
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
    """Return a line's JSON object, or None if it is none."""
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
            settled=line["settled"] is True,
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
    """Tell whether a value is a time that every function of datetime's takes."""
    return isinstance(value, str) and bool(TIME.fullmatch(value)) and 0 < seconds_of(value) < 2**33


def outcome_before(found: Any) -> dict[str, Any]:
    """Return what a line says became of the tick before, or nothing if that is damaged."""
    names = ("at", "outcome", "error", "deferred")
    before = {name: found.get(name) for name in names} if isinstance(found, dict) else {}
    error = before.get("error")
    before["error"] = printable(error, 2000) if isinstance(error, str) else None
    is_whole = is_time(before.get("at")) and before.get("outcome") in OUTCOMES and is_printable(before["deferred"])
    return before if is_whole else {}


def all_of(state: State) -> list[Path]:
    """Return the history files of this host, oldest first."""
    history = History(state.directory, 0)
    try:
        return [*history.segments(), *([history.current] if history.current.is_file() else [])]
    except OSError as error:
        raise FailureError(f"{state.directory} cannot be read: {error.strerror}") from error


def ticks_since(state: State, since: float) -> Iterator[Past]:
    """Yield the ticks since a time; segments that ended before it are not read."""
    # A file was last written to when its last tick was added, or, compressed, within the hour after that.
    files = []
    for path in all_of(state):
        with contextlib.suppress(OSError):  # a tick may just have removed it
            files += [path] if path.lstat().st_mtime >= since else []
    return (past for past in read_history(files) if past.seconds >= since)


def outcomes(before: Iterable[Mapping[str, Any]], last: Status | None) -> dict[str, Mapping[str, Any]]:
    """Return what became of each tick in which something was to be done, by its time: what later ones say `before`."""
    found = {str(each["at"]): each for each in before if "at" in each}
    if last and last.outcome != "unchanged":
        found[last.decided_at] = {name: getattr(last, name) for name in ("outcome", "error", "deferred")}
    return found


def last_status(state: State) -> Status | None:
    """Return the status, or None where there is none, or a damaged one."""
    with contextlib.suppress(FileNotFoundError, FailureError):
        return state.status()
    return None


def local(at: str) -> str:
    """Return an RFC 3339 time as the clock on the wall has it."""
    return datetime.fromtimestamp(seconds_of(at)).astimezone().strftime("%m-%d %H:%M:%S")


# --- status ---------------------------------------------------------------------------------------------


def show_status(state: State, *, watch: bool) -> None:
    """Print the status; with `watch`, print it again whenever a tick has ended, until interrupted.

    Raises:
        FileNotFoundError: no tick has ended yet.
    """
    shown, reloads = "", 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            status = state.status()
            if is_new := status.decided_at != shown:
                shown, reloads = status.decided_at, reloads_in_the_last_hour(state, status)
            console = terminal()
            if watch and console:
                console.clear()
            if is_new or console:  # on a terminal each second, because ages grow
                print_status(console, status, reloads)
            if not watch:
                return
            time.sleep(1)


def reloads_in_the_last_hour(state: State, status: Status) -> int:
    """Return how often what nginx serves has changed, as far as the history knows."""
    start = time.time() - HOUR_SECONDS
    found = outcomes((past.before for past in ticks_since(state, start)), status)
    return sum(each["outcome"] in LIVE and seconds_of(at) >= start for at, each in found.items())


def print_status(console: Console | None, status: Status, reloads: int) -> None:
    """Print what the last tick decided and what became of it: in colours on a terminal, else as plain text."""
    now = time.time()
    if console is None:
        print(table(status.pools), "", *summary(status, now, reloads), sep="\n", flush=True)
        return
    from rich.text import Text

    for pool in status.pools:
        print_pool(console, pool)
    style = "bold red" if status.error or too_old(status, now) else ""
    for line in summary(status, now, reloads):
        console.print(Text(line, style))
        style = ""


def summary(status: Status, now: float, reloads: int) -> Iterator[str]:
    """Yield the lines below the table."""
    why = f": {status.error or status.deferred}" if status.error or status.deferred else ""
    age = now - seconds_of(status.decided_at)
    yield f"{status.outcome} {age:.0f} s ago, at {status.decided_at}, generation {status.generation}{why}"
    if status.error and status.succeeded_at:
        yield f"last tick without a fault: {status.succeeded_at}"
    changes = "reload" if status.totals.published == 0 else "change"
    draining = f"{status.draining_generations} former generation{'s' * (status.draining_generations != 1)} of workers"
    yield f"{reloads} {changes}{'s' * (reloads != 1)} in the last hour, {draining} still draining"


def terminal() -> Console | None:
    """Return the terminal, or None where output goes elsewhere, or the library that draws on it is missing."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(highlight=False, width=shutil.get_terminal_size().columns)


STYLES = {"up": "green", "down": "bold red", "unknown": "yellow", "drained": "blue"}


def print_pool(console: Console, pool: PoolPlan) -> None:
    """Print one pool's nodes as a table that fits the terminal."""
    from rich.table import Table
    from rich.text import Text

    narrow = console.width < NARROW_COLUMNS
    title = Text(pool.name + (f": {pool.held}" if pool.held else ""), "bold")
    shown = Table(title=title, title_justify="left", title_style="", box=None)
    for heading in ("NODE", "STATE", "KV", "WAIT" if narrow else "WAITING", "RUN" if narrow else "RUNNING", "WEIGHT"):
        left = heading in ("NODE", "STATE")
        shown.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    if not narrow:
        shown.add_column("REASON", overflow="fold")
    for node in pool.nodes:
        kv = "-" if node.kv_cache_usage is None else shown_ratio(node.kv_cache_usage)
        counts = ["-" if value is None else str(value) for value in (node.waiting, node.running)]
        state, weight = Text(node.state, STYLES[node.state]), Text(str(node.weight), "" if node.weight else "bold red")
        reason = [] if narrow else [Text(node.reason)]
        shown.add_row(Text(node.name), state, kv, *counts, weight, *reason)
    console.print(shown)
    if narrow:
        for node in pool.nodes:
            console.print(Text(f"  {node.name}: {node.reason}", "dim"))
    console.print()


# --- explain --------------------------------------------------------------------------------------------

UNITS = {"s": 1, "m": 60, "h": HOUR_SECONDS, "d": 24 * HOUR_SECONDS}
# What may move a weight, as the table of a node's changes names it.
INPUTS = {
    "kv_cache_usage": "kv",
    "waiting": "waiting",
    "running": "running",
    "preemptions": "preemptions",
    "engines": "engines",
    "error": "error",
}


def explain(config: Config, state: State, name: str, since: str) -> None:
    """Print each change of a node's weight or state since a time, and which inputs had moved then.

    Raises:
        FailureError: the node or the time is not known (exit code 2).
    """
    seen, before = list[tuple[str, dict[str, Any]]](), list[dict[str, Any]]()
    for past in ticks_since(state, start_of(since)):  # not kept as a whole: a day of many nodes is large
        before.append(past.before)
        if row := past.node(name):
            seen.append((past.at, row))
    nodes = [node.name for pool in config.pools for node in pool.nodes]
    if name not in nodes and not seen:
        raise FailureError(f"no node {name!r}: expected one of {', '.join(nodes)}", EXIT_USAGE)
    if not seen:
        print(f"{name}: no tick since {since} is in the history")
        return
    became, changes = outcomes(before, last_status(state)), 0
    for (_, was), (at, row) in itertools.pairwise([seen[0], *seen]):
        if (was["weight"], was["state"]) != (row["weight"], row["state"]):
            changes += 1
            print("\n".join(change(at, was, row, became.get(at))))
    rows = [row for _, row in seen]
    spans = [span(rows, key, words) for key, words in {"weight": "weight", **INPUTS}.items() if key != "error"]
    print(f"\n{name}: {len(seen)} ticks from {local(seen[0][0])} to {local(seen[-1][0])}, {changes} changes")
    print(f"  {', '.join(spans)}")


def start_of(since: str) -> float:
    """Return the time that `since` means, in seconds since 1970."""
    if match := re.fullmatch(r"(\d{1,6})([smhd])", since):
        return time.time() - int(match[1]) * UNITS[match[2]]
    try:
        return datetime.fromisoformat(since).timestamp()
    except (ValueError, OverflowError) as error:
        raise FailureError(
            f"--since: {since!r}: expected a number with s, m, h or d, or a time such as 2026-11-26T10:00", EXIT_USAGE
        ) from error


def change(at: str, was: Mapping[str, Any], row: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the lines about one change of a node's weight or state."""
    state = f" ({was['state']} -> {row['state']})" if was["state"] != row["state"] else ""
    reason = row["reason"] or "the reason was not kept"
    yield f"{local(at)}  weight {was['weight']:>3} -> {row['weight']:>3}{state}: {reason}"
    moved = [
        f"{words} {shown_value(was[key])} -> {shown_value(row[key])}"
        for key, words in INPUTS.items()
        if was[key] != row[key]
    ]
    if moved:
        yield f"                since the tick before: {', '.join(moved)}"
    if outcome:
        why = outcome["error"] or outcome["deferred"]
        yield f"                {outcome['outcome']}" + (f": {why}" if why else "")


def shown_value(value: Any) -> str:
    """Return one input as it stands in a line."""
    return "-" if value is None else shown_ratio(value) if isinstance(value, float) else str(value)


def span(rows: Sequence[Mapping[str, Any]], key: str, words: str) -> str:
    """Return the least and the most of a column."""
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return f"{words} -"
    least, most = min(values), max(values)
    return f"{words} {shown_value(least)}" + (f" to {shown_value(most)}" if least != most else "")


# --- replay ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Replayed:
    """What a replay comes to, beside what was recorded."""

    times: list[str] = field(default_factory=list)
    weights: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # of each node: recorded, replayed
    before: list[dict[str, Any]] = field(default_factory=list)  # what became of ticks, as recorded


def replay(
    config_file: Path, state: State, files: Sequence[Path], *, policy: str | None, changes: Sequence[str]
) -> None:
    """Run recorded ticks through the configuration with other settings, and print what it would have decided.

    What nodes had to do was the effect of the weights they had; so a replay says what would have been decided on
    these figures, not what the figures would have become.

    Raises:
        FailureError: a setting cannot be used, or there is nothing to replay.
    """
    publisher, found = Publisher(changed(config_file, policy, changes)), Replayed()
    for past, pools in replayed_ticks(publisher, read_history(files or all_of(state))):
        found.times.append(past.at)
        found.before.append(past.before)
        for node in (node for pool in pools for node in pool.nodes):
            weights = found.weights.setdefault(node.name, [])
            if weights and weights[-1][1] != node.weight:
                print(f"{local(past.at)}  {node.name}: weight {weights[-1][1]} -> {node.weight}: {node.reason}")
            weights.append(((past.node(node.name) or {}).get("weight", 0), node.weight))
    if not found.times:
        raise FailureError("no configured node is in the history: nothing to replay")
    print_replayed(found, publisher)


def changed(config_file: Path, policy: str | None, changes: Sequence[str]) -> Config:
    """Return the configuration with other settings: KEY=VALUE, where KEY is a path such as health.fall."""
    raw = read_yaml(config_file)
    check_config(raw, config_file)
    for pool in raw["pools"] if policy else ():
        pool["policy"] = policy
    for each in changes:
        key, equals, value = each.partition("=")
        *path, last = key.split(".")
        at = raw
        for name in path:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
        if not equals or not isinstance(at, dict):
            raise FailureError(f"--set: {each!r}: expected KEY=VALUE, such as health.fall=5", EXIT_USAGE)
        with contextlib.suppress(yaml.YAMLError, ValueError):  # what is no YAML is a text, and will not be allowed
            value = yaml.safe_load(value)
        at[last] = value
    return check_config(raw, config_file)


def only_nodes(config: Config, names: AbstractSet[str]) -> Config:
    """Return the configuration without nodes that a tick did not have, and without pools that have none left."""
    pools = [
        dataclasses.replace(pool, nodes=nodes)
        for pool in config.pools
        if (nodes := tuple(node for node in pool.nodes if node.name in names))
    ]
    return dataclasses.replace(config, pools=tuple(pools))


class Publisher:
    """What nginx would have been given, and when: reloads are rationed as in a tick, and always taken."""

    def __init__(self, config: Config) -> None:
        """Begin with nothing published."""
        self.config, self.template = config, load_template(config)
        self.generation, self.text, self.at = "", "", 0.0
        self.published = self.deferred = 0

    def take(self, config: Config, pools: Sequence[PoolPlan], now: float) -> bool:
        """Publish a plan if it is due; tell whether what is decided is live."""
        context = template_context(config, pools)
        generation = generation_for(context, self.template)
        if generation == self.generation:
            return True
        wanted = render(context, self.template)
        only_weights = self.text and membership(self.text) == membership(wanted)
        if config.nginx.balancer == "upstream" and only_weights:
            age = now - self.at if now >= self.at else math.inf  # the clock starts again when the host does
            if reason_to_wait(config.nginx, self.text, wanted, age, draining=0):
                self.deferred += 1
                return False
        self.published += bool(self.text)  # the first is what nginx had already
        self.generation, self.text, self.at = generation, wanted, now
        return True


def replayed_ticks(publisher: Publisher, ticks: Iterable[Past]) -> Iterator[tuple[Past, tuple[PoolPlan, ...]]]:
    """Yield each recorded tick with what would have been decided in it for the nodes that it had.

    As long as that is what was decided, what became of it is what was recorded: a tick may have failed.
    """
    memory: dict[str, NodeMemory] = {}
    settled, agrees, names, config = True, True, frozenset[str](), publisher.config
    for past in ticks:
        rows = {name: row for name in past.rows if (row := past.node(name))}
        if names != rows.keys():
            names = frozenset(rows)
            config = only_nodes(publisher.config, names)
        if agrees and past.memory is not None:
            memory = first_memory(past)
        if config.pools:
            samples = {node.name: sample_of(rows[node.name]) for pool in config.pools for node in pool.nodes}
            settled = past.settled if agrees else settled
            pools, memory = decide(config, samples, memory, past.drained, past.now, settled=settled)
            settled = publisher.take(config, pools, past.now)
            agrees = all(node.weight == rows[node.name]["weight"] for pool in pools for node in pool.nodes)
            yield past, pools


def first_memory(past: Past) -> dict[str, NodeMemory]:
    """Return what a tick began with, as far as it is known."""
    built = {name: build(NodeMemory, value, name, []) for name, value in (past.memory or {}).items()}
    return {name: each for name, each in built.items() if each is not MISSING}


def sample_of(row: Mapping[str, Any]) -> Sample:
    """Return the sample that a row of the history was made from."""
    return Sample(
        address=row["address"],
        seconds=float(row["seconds"] or 0),
        reading=None if row["engines"] is None else Reading(**{name: row[name] for name in READING}),
        error=row["error"],
        answered=row["answered"] is not False,
        unresolved=row["unresolved"],
    )


def print_replayed(found: Replayed, publisher: Publisher) -> None:
    """Print what differs between what was decided and what would have been."""
    rows: list[tuple[str, ...]] = [
        ("NODE", "WEIGHT, RECORDED", "REPLAYED", "CHANGES, RECORDED", "REPLAYED", "TICKS THAT DIFFER")
    ]
    for name, weights in found.weights.items():
        both = list(zip(*weights, strict=True))
        means = [f"{sum(each) / len(each):.1f}" for each in both]
        moves = [str(sum(a != b for a, b in itertools.pairwise(each))) for each in both]
        rows.append((name, *means, *moves, str(sum(recorded != replayed for recorded, replayed in weights))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    became = [each["outcome"] for each in outcomes(found.before, None).values()]
    changes, waited = sum(each in LIVE for each in became), became.count("deferred")
    print(
        f"\n{len(found.times)} ticks from {local(found.times[0])} to {local(found.times[-1])}"
        f"\nwhat nginx serves changed {changes} times as recorded, {publisher.published} times as replayed;"
        f" a change waited in {waited} ticks as recorded, in {publisher.deferred} as replayed"
    )
