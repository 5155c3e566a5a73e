# SPDX-License-Identifier: Apache-2.0
"""The half of a tick that runs as root: it publishes a plan if nginx needs it, and records the result.

It validates everything that the unprivileged half wrote. A test checks the short list of modules that this half loads:
nothing that scrapes or decides, no HTTP client, no TLS.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from vllm_lb.backups import Backup
from vllm_lb.causes import FailureCause
from vllm_lb.errors import EXIT_LOCKED, FailureError, PublishError, RolledBackError
from vllm_lb.files import age_seconds, locked
from vllm_lb.journal import DEBUG, ERROR, NOTICE, log
from vllm_lb.live import Live
from vllm_lb.nginx import Nginx
from vllm_lb.plan import Plan
from vllm_lb.publish import check_balancer, failed_lately, finish, live_or_restored, present_of, publish
from vllm_lb.published import differing_weights
from vllm_lb.reload_limit import Workers, reason_to_wait
from vllm_lb.render import source_of
from vllm_lb.state import Result
from vllm_lb.text import timestamp

if TYPE_CHECKING:
    from vllm_lb.publish import Present
    from vllm_lb.settings import Config
    from vllm_lb.state import State


def apply_command(config: Config, state: State) -> None:
    """Publish the plan that `collect` left, and record the result."""
    nginx, plan, known = Nginx(config.nginx), Plan(version=1, decided_at=timestamp()), state.workers()
    try:
        with locked(nginx.lock, 0o600):
            plan = state.plan(config)
            result = apply(config, plan, known)
    except FailureError as failure:
        if failure.code != EXIT_LOCKED:
            record_failure(config, state, plan, failure, known)
        raise
    log_result(result, state)
    held = [pool for pool in plan.pools if pool.held_cause]
    if held:
        error = "; ".join(f"pool {pool.name}: {pool.held}" for pool in held)
        result = dataclasses.replace(result, error_cause=FailureCause.POOL_HELD, error=error)
    state.record(plan, result, config.interval_seconds)
    if held:
        raise FailureError(FailureCause.POOL_HELD, str(result.error))


def apply(config: Config, plan: Plan, known: Workers) -> Result:
    """Publish a plan, unless nginx serves it already or it has to wait.

    `known` are nginx's workers as of the last tick.

    Raises:
        FailureError: nothing was changed. A RolledBackError says that a change was undone.
    """
    nginx, source = Nginx(config.nginx), source_of(config, plan.pools)
    live = live_or_restored(nginx)
    present, workers = present_of(nginx, live), nginx.workers(known, live)
    if present.record and present.is_live(live) and source.generation == live.generation:
        finish(nginx, Backup(present.content, present.record))
        return Result(outcome="unchanged", generation=source.generation, live_weights={}, workers=workers)
    check_balancer(nginx, live)
    wanted = source.render()
    if nginx.reloads and present.record and present.is_live(live):
        has_same_members = present.record.membership == wanted.record.membership
        age = age_seconds(nginx.file)
        if has_same_members and (
            wait := reason_to_wait(config.nginx, present.record, wanted.record, age, workers.draining)
        ):
            return Result(
                outcome="deferred",
                generation=live.generation,
                deferred_cause=wait.cause,
                deferred=wait.reason,
                live_weights=differing_weights(config, plan.pools, present.record),
                workers=workers,
            )
    if present.record and (failure := failed_lately(nginx, wanted.record)):
        raise FailureError(FailureCause.RETRY_LATER, failure)
    earlier = complaint_of_others(nginx, config, present)
    try:
        publish(nginx, wanted, present, live)
    except PublishError as failed:
        if failed.fault == earlier:
            problem = f"nothing published, the configuration test failed already: {earlier}"
            raise FailureError(FailureCause.TEST_FAILED_BEFORE, problem) from failed
        raise
    outcome = "reloaded" if nginx.reloads else "published"
    return Result(outcome=outcome, generation=source.generation, live_weights={}, workers=workers)


def complaint_of_others(nginx: Nginx, config: Config, present: Present) -> str | None:
    """Return nginx's complaint before we change a file, if our file may be the reason; None if nginx does not complain.

    Raises:
        FailureError: nginx complains about another file.
    """
    complaint = nginx.test()
    # nginx may complain about another file although ours is the reason: it was edited, or it lacks a new pool.
    may_be_ours = present.record is None or any(pool.name not in present.record.weights for pool in config.pools)
    if complaint and not may_be_ours and str(nginx.file) not in complaint:
        problem = f"nothing changed, the configuration test fails already: {complaint}"
        raise FailureError(FailureCause.TEST_FAILED_BEFORE, problem)
    return complaint


def record_failure(config: Config, state: State, plan: Plan, failure: FailureError, known: Workers) -> None:
    """Record that a plan did not go live."""
    nginx, live = Nginx(config.nginx), Live(None)
    live_weights: dict[str, dict[str, int]] | None = None
    with contextlib.suppress(FailureError):  # what is not known must not hide the first error
        live = nginx.live()
        live_weights = differing_weights(config, plan.pools, nginx.backups.record_of_generation(live.generation))
    result = Result(
        outcome="rolled_back" if isinstance(failure, RolledBackError) else "failed",
        generation=live.generation,
        error_cause=failure.cause,
        error=str(failure),
        live_weights=live_weights,
        workers=nginx.workers(known, live),
    )
    try:
        state.record(plan, result, config.interval_seconds)
    except FailureError as second:  # for instance a full disk: it must not hide the first error
        log(ERROR, str(second))


def log_result(result: Result, state: State) -> None:
    """Log the result of a plan. A plan that waits is logged once, not in each tick."""
    fields = {"outcome": result.outcome, "generation": result.generation, "cause": result.deferred_cause}
    if result.outcome == "deferred":
        before = state.last()
        if before is None or before.deferred_cause != result.deferred_cause:
            log(NOTICE, f"deferred: {result.deferred}", **fields)
    else:
        priority = DEBUG if result.outcome == "unchanged" else NOTICE
        log(priority, f"{result.outcome}: generation {result.generation}", **fields)
