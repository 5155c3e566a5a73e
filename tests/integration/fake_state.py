"""A state directory like the script's, with the load, the faults and the sentences that a test wants."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_lb.history import COLUMNS
from vllm_lb.outcome import CHANGES, OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GENERATION = "9f3ac21b04de5566778899aabbccddeeff00112233445566778899aabbccddee"

HOST = "ingress-1"


def stamp(at: float) -> str:
    """Return a time as the script writes it."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds")


# The code of each sentence of a status, unless a test names another.
CODES = {"error": "test_failed", "deferred": "cooldown", "held": "no_node_readable"}


@dataclass
class FakeNode:
    """A node as the next tick sees it."""

    name: str
    weight: int = 100
    state: str = "up"
    kv: float | None = 0.4
    waiting: int | None = 0
    running: int | None = 4
    cause: str = "kv_level"
    reason: str = "kv 0.40 < 0.75"
    error: str | None = None
    error_cause: str | None = None
    address: str = "192.0.2.1"
    drained_since: float | None = None
    drain_reason: str | None = None
    engines: int = 1
    seen: tuple[int, str] | None = None  # weight and state at the tick before
    tokens: int = 0

    def fail(self, reason: str) -> None:
        """Take the node down."""
        self.state, self.weight, self.kv, self.waiting, self.running = "down", 0, None, None, None
        self.cause, self.reason = "unreachable", reason
        self.error_cause, self.error = "connection_refused", reason

    def row(self) -> dict[str, Any]:
        """Return the node's row of the history, by the names of the columns, without those that are null."""
        moved = self.seen != (self.weight, self.state)
        self.tokens += 180 * (self.running or 0)
        read = {
            "kv_cache_usage": self.kv,
            "waiting": self.waiting,
            "running": self.running,
            "preemptions": 0,
            "engines": self.engines,
            "awake": 1,
            "prompt_tokens": 3 * self.tokens,
            "generation_tokens": self.tokens,
            "finished": self.tokens // 200,
        }
        return {
            "state": self.state,
            "weight": self.weight,
            **(read if self.kv is not None else {}),
            "seconds": round(random.uniform(0.002, 0.02), 4),  # noqa: S311 - no secret
            "address": self.address,
            "answered": None if self.error is None else False,
            "error": self.error,
            "error_cause": self.error_cause,
            "reason": self.reason if moved else None,
            "cause": self.cause if moved else None,
        }


@dataclass
class FakeState:
    """Writes status.json and the history of a state directory, tick by tick."""

    directory: Path
    pools: dict[str, list[FakeNode]]
    interval: float = 10.0
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    before: dict[str, Any] | None = None
    segments: int = 0
    changed: tuple[float, str] | None = None
    succeeded: float | None = None
    held: str | None = None
    reword: Callable[[str], str] = str  # changes each sentence before it is written
    has_codes: bool = True  # False: without cause, error_cause and the other codes, as in former versions
    live: dict[str, dict[str, int]] | None = field(default_factory=dict)  # live weights that are not the decided ones
    lines: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of the history."""
        return [name for name in COLUMNS if self.has_codes or not name.endswith("cause")]

    def rotate(self) -> None:
        """Begin another segment of the history."""
        previous = None
        if self.lines:
            self.segments += 1
            previous = f"history-{self.segments:06}.jsonl.gz"
            (self.directory / previous).write_bytes(gzip.compress("".join(self.lines).encode()))
        self.lines = [json.dumps({"version": 1, "previous": previous, "columns": self.columns, "memory": {}}) + "\n"]

    def tick(self, at: float, outcome: str = "unchanged", *, write: bool = True, **said: Any) -> None:
        """Let a tick end at a time with an outcome; `said` are keys of the status, such as error."""
        if not self.lines:
            self.rotate()
        line: dict[str, Any] = {"at": stamp(at), "now": at % 1e6, "applied": True, "drained": []}
        if self.before:
            line["before"] = self.before
        line["pools"] = {pool: {node.name: self.row(node) for node in nodes} for pool, nodes in self.pools.items()}
        self.lines.append(json.dumps(line, separators=(",", ":")) + "\n")
        self.totals[outcome] += 1
        if outcome in CHANGES:
            self.changed = at + 0.05, outcome  # when it was live
        if outcome not in ("rolled_back", "failed"):
            self.succeeded = at
        result: dict[str, Any] = {
            "outcome": outcome,
            "generation": GENERATION,
            **self.sentence("error"),
            **self.sentence("deferred"),
        }
        for name, value in said.items():
            if name in CODES:
                result |= self.sentence(name, value, said.get(f"{name}_cause"))
            elif name.removesuffix("_cause") not in CODES:
                result[name] = value
        plain = outcome == "unchanged" and not result["error"]
        kept = ("outcome", "generation", "error", "error_cause", "deferred", "deferred_cause")
        self.before = None if plain else {"at": stamp(at)} | {k: result[k] for k in kept if k in result}
        new = {"host": HOST, "package_version": "9.8.7", "live_weights": self.live} if self.has_codes else {}
        status = {
            "version": 1,
            **new,
            "decided_at": stamp(at),
            "pools": [
                {"name": pool, **self.sentence("held", self.held), "nodes": [self.told(node) for node in nodes]}
                for pool, nodes in self.pools.items()
            ],
            "applied": outcome not in ("rolled_back", "failed"),
            "draining_generations": 0,
            "interval_seconds": self.interval,
            "succeeded_at": self.succeeded and stamp(self.succeeded),
            "changed_at": self.changed and stamp(self.changed[0]),
            "changed_outcome": self.changed and self.changed[1],
            "totals": self.totals,
            **result,
        }
        for node in (node for nodes in self.pools.values() for node in nodes):
            node.seen = node.weight, node.state
        if write:
            self.write(status)

    def write(self, status: Any) -> None:
        """Write the status and the history as at the end of a tick."""
        (self.directory / "history.jsonl").write_text("".join(self.lines), encoding="utf-8")
        self.put(json.dumps(status))

    def put(self, text: str) -> None:
        """Write a text as status.json."""
        temporary = self.directory / ".status.json"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.directory / "status.json")

    def sentence(self, name: str, sentence: str | None = None, code: str | None = None) -> dict[str, str | None]:
        """Return a sentence of a status, and its code."""
        words = None if sentence is None else self.reword(sentence)
        found = None if sentence is None else code or CODES[name]
        return {name: words, f"{name}_cause": found} if self.has_codes else {name: words}

    def row(self, node: FakeNode) -> list[Any]:
        """Return a node's row of the history, without trailing nulls."""
        values = node.row()
        for name in ("reason", "error"):
            values[name] = values[name] and self.reword(values[name])
        row = [values.get(name) for name in self.columns]
        while row and row[-1] is None:
            row.pop()
        return row

    def told(self, node: FakeNode) -> dict[str, Any]:
        """Return a node as in a status."""
        new = {
            "cause": node.cause,
            "error_cause": node.error_cause,
            "drained_since": node.drained_since and stamp(node.drained_since),
            "drain_reason": node.drain_reason,
        }
        return {
            "name": node.name,
            "address": node.address,
            "state": node.state,
            "kv_cache_usage": node.kv,
            "waiting": node.waiting,
            "running": node.running,
            "preemptions_delta": None if node.kv is None else 0,
            "engines": None if node.kv is None else node.engines,
            "weight": node.weight,
            "previous_weight": node.seen[0] if node.seen else None,
            "reason": self.reword(node.reason),
            "scrape_seconds": 0.0042,
            "error": node.error and self.reword(node.error),
            **(new if self.has_codes else {}),
        }
