# SPDX-License-Identifier: Apache-2.0
"""What people look at: the status of all nodes, why a weight moved, and what other settings would have done.

`vllm-nginx-lb status`, `explain` and `replay`, kept out of vllm_nginx_lb.py because a tick, which reads that file
anew every few seconds, needs none of it. All three read what ticks have left in the state directory, and write nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import itertools
import json
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
    READING,
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
    load_template,
    log,
    membership,
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
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from vllm_nginx_lb import PoolPlan, State, Status

HOUR_SECONDS = 3600
NARROW_COLUMNS = 100  # of a terminal: with fewer, reasons get a line of their own
LIVE = ("reloaded", "published")


# --- History: what ticks have written down -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Past:
    """One tick of the history."""

    at: str  # RFC 3339
    now: float  # seconds of the monotonic clock
    settled: bool
    drained: frozenset[str]
    before: Mapping[str, Any]  # what became of the tick before; empty if nothing was to be done
    nodes: Mapping[str, Mapping[str, Any]]  # name -> column -> value
    memory: Mapping[str, Any] | None  # what the tick began with, where it is the first of a segment

    @property
    def seconds(self) -> float:
        """When it was, in seconds since 1970."""
        return seconds_of(self.at)


def read_history(files: Sequence[Path]) -> Iterator[Past]:
    """Yield the ticks of history files, in their order.

    What is damaged is left out: files with a warning, and without one lines that a full disk tore off.
    """
    known: set[str] = set()  # a run that is killed as it begins a segment leaves the ticks of the last one twice
    for path in files:
        lines = lines_of(path)
        head = (parsed(lines[0]) if lines else None) or {}
        if head.get("version") != 1 or not isinstance(head.get("columns"), list):
            log(WARNING, f"{path}: left out: expected a history file with version 1 and columns in its first line")
            continue
        memory = head.get("memory")
        for line in lines[1:]:
            past = past_tick(parsed(line), head["columns"], memory)
            if past and past.at not in known:
                known.add(past.at)
                memory = None
                yield past


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a history file; none of one that cannot be read."""
    try:
        content = read_file(path, max_bytes=2**28)
        return (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    except FileNotFoundError:
        log(WARNING, f"{path}: there is no such file")
    except (gzip.BadGzipFile, zlib.error, EOFError, FailureError) as error:
        log(WARNING, f"{path}: {error}")
    return []


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, or None if it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


def past_tick(line: dict[str, Any] | None, columns: Sequence[str], memory: Any) -> Past | None:
    """Return the tick that a line of the history is, or None if it is damaged."""
    try:
        if line is None:
            return None
        return Past(
            at=str(line["at"]),
            now=float(line["now"]),
            settled=bool(line["settled"]),
            drained=frozenset(line.get("drained", ())),
            before=dict(line.get("before", {})),
            nodes={
                name: dict.fromkeys(columns) | dict(zip(columns, row, strict=False))
                for nodes in line["pools"].values()
                for name, row in nodes.items()
            },
            memory=memory if isinstance(memory, dict) else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def all_of(state: State) -> list[Path]:
    """Return the history files of this host, oldest first."""
    history = History(state.directory, 0)
    try:
        return [*history.segments(), *([history.current] if history.current.exists() else [])]
    except OSError as error:
        raise FailureError(f"{state.directory} cannot be read: {error.strerror}") from error


def ticks_since(state: State, since: float) -> Iterator[Past]:
    """Yield the ticks since a time; segments that ended before it are not read."""
    # A file was last written to when its last tick was added, or, compressed, within the hour after that.
    files = [path for path in all_of(state) if path.stat().st_mtime >= since]
    return (past for past in read_history(files) if past.seconds >= since)


def outcomes(ticks: Sequence[Past], last: Status | None) -> dict[str, Mapping[str, Any]]:
    """Return what became of each tick in which something was to be done, by its time."""
    found = {str(past.before["at"]): past.before for past in ticks if "at" in past.before}
    if last and last.outcome != "unchanged":
        found[last.decided_at] = dataclasses.asdict(last)
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
    if not watch:
        print_status(state, state.status())
        return
    shown = ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            status = state.status()
            if console := terminal():
                console.clear()
                print_status(state, status)  # each second, because ages grow
            elif status.decided_at != shown:
                print_status(state, status)
                print(flush=True)
            shown = status.decided_at
            time.sleep(1)


def print_status(state: State, status: Status) -> None:
    """Print what the last tick decided and what became of it: in colours on a terminal, else as plain text."""
    now = time.time()
    reloads = sum(
        each.get("outcome") in LIVE for each in outcomes(list(ticks_since(state, now - HOUR_SECONDS)), status).values()
    )
    console = terminal()
    if console is None:
        print(table(status.pools))
        print("\n" + "\n".join(summary(status, now, reloads)))
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
    shown = Table(
        title=pool.name + (f": {pool.held}" if pool.held else ""), title_justify="left", title_style="bold", box=None
    )
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
    start = start_of(since)
    ticks = list(ticks_since(state, start))
    nodes = [node.name for pool in config.pools for node in pool.nodes]
    if name not in nodes and not any(name in past.nodes for past in ticks):
        raise FailureError(f"no node {name!r}: expected one of {', '.join(nodes)}", EXIT_USAGE)
    ticks = [past for past in ticks if name in past.nodes]
    if not ticks:
        print(f"{name}: no tick since {since} is in the history")
        return
    became = outcomes(ticks, last_status(state))
    changes = 0
    for was, past in zip([ticks[0], *ticks], ticks, strict=False):
        for line in change(was.nodes[name], past, name, became):
            changes += not line.startswith(" ")
            print(line)
    rows = [past.nodes[name] for past in ticks]
    print(f"\n{name}: {len(ticks)} ticks from {local(ticks[0].at)} to {local(ticks[-1].at)}, {changes} changes")
    print(
        "  "
        + ", ".join(span(rows, key, words) for key, words in {"weight": "weight", **INPUTS}.items() if key != "error")
    )


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


def change(was: Mapping[str, Any], past: Past, name: str, became: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines about one node in one tick: none if neither its weight nor its state moved."""
    row = past.nodes[name]
    if (was["weight"], was["state"]) == (row["weight"], row["state"]):
        return
    state = f" ({was['state']} -> {row['state']})" if was["state"] != row["state"] else ""
    reason = row["reason"] or "the reason was not kept"
    yield f"{local(past.at)}  weight {was['weight']:>3} -> {row['weight']:>3}{state}: {reason}"
    moved = [
        f"{words} {shown_value(was[key])} -> {shown_value(row[key])}"
        for key, words in INPUTS.items()
        if was[key] != row[key]
    ]
    if moved:
        yield f"                since the tick before: {', '.join(moved)}"
    if outcome := became.get(past.at):
        why = outcome.get("error") or outcome.get("deferred")
        yield f"                {outcome.get('outcome')}" + (f": {why}" if why else "")


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
    """How one node fares in a replay: its weights tick by tick, as recorded and as replayed."""

    recorded: list[int] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)


def replay(
    config_file: Path, state: State, files: Sequence[Path], *, policy: str | None, changes: Sequence[str]
) -> None:
    """Run recorded ticks through the configuration with other settings, and print what it would have decided.

    What nodes had to do was the effect of the weights they had; so a replay says what would have been decided on
    these figures, not what the figures would have become.

    Raises:
        FailureError: a file or a setting cannot be used.
    """
    config = changed(config_file, policy, changes)
    ticks = list(read_history(files or all_of(state)))
    recorded = {name for past in ticks for name in past.nodes}
    config = only_nodes(config, recorded)
    if not config.pools:
        raise FailureError("no configured node is in the history: nothing to replay")
    live = Publisher(config, fresh=not (ticks and ticks[0].memory))
    found, was = collections.defaultdict[str, Replayed](Replayed), dict[str, int]()
    for past, pools in replayed_ticks(config, ticks, live):
        for node in (node for pool in pools for node in pool.nodes):
            if node.name not in past.nodes:
                continue
            found[node.name].recorded.append(past.nodes[node.name]["weight"])
            found[node.name].replayed.append(node.weight)
            if was.get(node.name, node.weight) != node.weight:
                print(f"{local(past.at)}  {node.name}: weight {was[node.name]} -> {node.weight}: {node.reason}")
            was[node.name] = node.weight
    print_replayed(ticks, found, live)


def changed(config_file: Path, policy: str | None, changes: Sequence[str]) -> Config:
    """Return the configuration with other settings: KEY=VALUE, where KEY is a path such as health.fall."""
    raw = read_yaml(config_file)
    check_config(raw, config_file)
    for each in changes:
        key, equals, value = each.partition("=")
        *path, last = key.split(".")
        at = raw
        for name in path:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
        if not equals or not isinstance(at, dict):
            raise FailureError(f"--set: {each!r}: expected KEY=VALUE, such as health.fall=5", EXIT_USAGE)
        with contextlib.suppress(yaml.YAMLError):  # what is no YAML is a text, and will not be allowed
            value = yaml.safe_load(value)
        at[last] = value
    for pool in raw["pools"] if policy else ():
        pool["policy"] = policy
    return check_config(raw, config_file)


def only_nodes(config: Config, names: set[str]) -> Config:
    """Return the configuration without nodes that are not in the history, and without pools that have none left."""
    pools = [
        dataclasses.replace(pool, nodes=nodes)
        for pool in config.pools
        if (nodes := tuple(node for node in pool.nodes if node.name in names))
    ]
    return dataclasses.replace(config, pools=tuple(pools))


class Publisher:
    """What nginx would have been given, and when: reloads are rationed as in a tick, and always taken."""

    def __init__(self, config: Config, *, fresh: bool) -> None:
        """Begin; what is first is no change, but on a host that is `fresh`."""
        self.config, self.template, self.fresh = config, load_template(config), fresh
        self.generation, self.text, self.at = "", "", 0.0
        self.published = self.deferred = 0

    def take(self, pools: Sequence[PoolPlan], now: float) -> bool:
        """Publish a plan if it is due; tell whether what is decided is live."""
        context = template_context(self.config, pools)
        generation = generation_for(context, self.template)
        if generation == self.generation:
            return True
        wanted = render(context, self.template)
        only_weights = self.text and membership(self.text) == membership(wanted)
        if self.config.nginx.balancer == "upstream" and only_weights:
            age = now - self.at if now >= self.at else float("inf")  # the clock starts again when the host does
            if reason_to_wait(self.config.nginx, self.text, wanted, age, draining=0):
                self.deferred += 1
                return False
        self.published += self.fresh or bool(self.text)
        self.generation, self.text, self.at = generation, wanted, now
        return True


def replayed_ticks(
    config: Config, ticks: Sequence[Past], live: Publisher
) -> Iterator[tuple[Past, tuple[PoolPlan, ...]]]:
    """Yield each recorded tick with what would have been decided in it."""
    memory = first_memory(ticks)
    settled = True
    for past in ticks:
        samples = {node.name: sample_of(past.nodes.get(node.name)) for pool in config.pools for node in pool.nodes}
        pools, memory = decide(config, samples, memory, past.drained, past.now, settled=settled)
        settled = live.take(pools, past.now)
        yield past, pools


def first_memory(ticks: Sequence[Past]) -> dict[str, NodeMemory]:
    """Return what the first tick began with, as far as it is known."""
    raw = (ticks[0].memory if ticks else None) or {}
    built = {name: build(NodeMemory, value, name, []) for name, value in raw.items()}
    return {name: each for name, each in built.items() if each is not MISSING}


def sample_of(row: Mapping[str, Any] | None) -> Sample:
    """Return the sample that a row of the history was made from."""
    if row is None:
        return Sample(None, 0.0, None, "not in the history")
    try:
        return Sample(
            address=row["address"],
            seconds=float(row["seconds"] or 0),
            reading=None if row["kv_cache_usage"] is None else Reading(**{name: row[name] for name in READING}),
            error=row["error"],
            answered=row["answered"] is not False,
            unresolved=row["unresolved"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FailureError(f"the history is damaged: {error}") from error


def print_replayed(ticks: Sequence[Past], found: Mapping[str, Replayed], live: Publisher) -> None:
    """Print what differs between what was decided and what would have been."""
    rows: list[tuple[str, ...]] = [
        ("NODE", "WEIGHT, RECORDED", "REPLAYED", "CHANGES, RECORDED", "REPLAYED", "TICKS THAT DIFFER")
    ]
    for name, each in found.items():
        means = [f"{sum(weights) / len(weights):.1f}" for weights in (each.recorded, each.replayed)]
        moves = [str(moves_of(weights)) for weights in (each.recorded, each.replayed)]
        differ = sum(a != b for a, b in zip(each.recorded, each.replayed, strict=True))
        rows.append((name, *means, *moves, str(differ)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    went_live = sum(past.before.get("outcome") in LIVE for past in ticks)
    waited = sum(past.before.get("outcome") == "deferred" for past in ticks)
    print(
        f"\n{len(ticks)} ticks from {local(ticks[0].at)} to {local(ticks[-1].at)}"
        f"\nwhat nginx serves changed {went_live} times as recorded, {live.published} times as replayed;"
        f" a change waited in {waited} ticks as recorded, in {live.deferred} as replayed"
    )


def moves_of(weights: Sequence[int]) -> int:
    """Return how often a weight moved."""
    return sum(a != b for a, b in itertools.pairwise(weights))
