# SPDX-License-Identifier: Apache-2.0
"""The state directory: the plan, the status. An unprivileged user writes there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from vllm_lb import __version__
from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import locked, read_json, write_atomically
from vllm_lb.outcome import CHANGES, LIVE, Outcome, Status, Totals
from vllm_lb.plan import check_plan
from vllm_lb.reload_limit import Workers
from vllm_lb.schema import build
from vllm_lb.text import printable, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_lb.plan import Plan
    from vllm_lb.settings import Config

MAX_WORKERS_BYTES = 2**18
NO_WORKERS = Workers()


@data(kw_only=True)
class Result:
    """The result of a plan."""

    outcome: str
    generation: str | None  # the live one
    deferred_cause: str | None = None
    deferred: str | None = None  # why the change waits
    error_cause: str | None = None
    error: str | None = None
    live_weights: dict[str, dict[str, int]] | None = None  # see Outcome
    workers: Workers = NO_WORKERS


@data()
class State:
    """The state directory."""

    directory: Path

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the lock that every command takes that changes the state directory."""
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{self.directory}: {error.strerror}: expected a writable directory"
            raise FailureError(FailureCause.FILE_UNWRITABLE, problem) from error
        with locked(self.directory / "lock", 0o644, wait_seconds):
            yield

    def write(self, name: str, data: Any, *, sync: bool = False) -> None:
        """Write one JSON file, in one line: json.dumps is ten times faster without an indent."""
        write_atomically(self.directory / name, json.dumps(data) + "\n", 0o644, sync=sync)

    def plan(self, config: Config) -> Plan:
        """Return the plan that `collect` left, validated."""
        path = self.directory / "plan.json"
        try:
            return check_plan(read_json(path), config)
        except FileNotFoundError as error:
            raise FailureError(FailureCause.PLAN_MISSING, f"{path} is missing: run collect first") from error

    def decided_nodes(self) -> list[tuple[str, str]]:
        """Return the pools and nodes of the last decision, or none if it is not known."""
        with contextlib.suppress(FileNotFoundError, FailureError, KeyError, TypeError):
            raw = read_json(self.directory / "plan.json")
            names = [(pool["name"], node["name"]) for pool in raw["pools"] for node in pool["nodes"]]
            return [(printable(pool), printable(node)) for pool, node in names]
        return []

    def status(self) -> Status:
        """Return what the last tick recorded.

        Raises:
            FileNotFoundError: there was none yet.
            FailureError: it is damaged, or of another version.
        """
        path, problems = self.directory / "status.json", list[str]()
        status = build(Status, read_json(path), "status", problems)
        if problems:
            problem = f"{path} is not one of this version's: {printable(problems[0])}"
            raise FailureError(FailureCause.STATUS_UNREADABLE, problem)
        assert isinstance(status, Status)  # tells the type checker what build() returned
        return status

    def last(self) -> Outcome | None:
        """Return the result of the last tick, without its nodes, or None if it is not known."""
        with contextlib.suppress(FileNotFoundError, FailureError):
            raw = read_json(self.directory / "status.json")
            names = [each.name for each in dataclasses.fields(Outcome)]
            known = {name: raw[name] for name in names if name in raw} if isinstance(raw, dict) else None
            outcome = build(Outcome, known, "status", [])
            return outcome if isinstance(outcome, Outcome) else None
        return None

    def workers(self) -> Workers:
        """Return nginx's workers as the last tick saw them, or none."""
        with contextlib.suppress(FileNotFoundError, FailureError):
            raw = read_json(self.directory / "workers.json", max_bytes=MAX_WORKERS_BYTES)
            found = build(Workers, raw, "workers", [])
            return found if isinstance(found, Workers) else Workers()
        return Workers()

    def record(self, plan: Plan, result: Result, interval_seconds: float) -> None:
        """Write status.json: the plan, its result, and totals of the ticks so far."""
        before, is_change = self.last(), result.outcome in CHANGES
        totals = before.totals if before else Totals()
        is_well = result.error_cause is None and result.outcome != "failed"
        self.write(
            "status.json",
            dataclasses.asdict(plan)
            | {
                "generation": result.generation,
                "applied": result.outcome in (*LIVE, "unchanged"),
                "outcome": result.outcome,
                "deferred_cause": result.deferred_cause,
                "deferred": result.deferred,
                "host": printable(os.uname().nodename, 255).replace(" ", "?") or None,
                "draining_generations": result.workers.draining,
                "live_weights": result.live_weights,
                "error_cause": result.error_cause,
                "error": result.error and printable(result.error, 2000),
                "interval_seconds": interval_seconds,
                "succeeded_at": plan.decided_at if is_well else before and before.succeeded_at,
                "changed_at": timestamp() if is_change else before and before.changed_at,
                "changed_outcome": result.outcome if is_change else before and before.changed_outcome,
                "totals": dataclasses.asdict(totals) | {result.outcome: getattr(totals, result.outcome) + 1},
                "package_version": __version__,
            },
        )
        if result.workers != self.workers():
            self.write("workers.json", dataclasses.asdict(result.workers))
