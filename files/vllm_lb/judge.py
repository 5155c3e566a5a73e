# SPDX-License-Identifier: Apache-2.0
"""The state, the weight and the cause of one node that is not drained. Pure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vllm_lb.causes import NodeCause
from vllm_lb.data import data
from vllm_lb.health import frozen_for_seconds, good_scrapes_needed

if TYPE_CHECKING:
    from vllm_lb.memory import NodeMemory
    from vllm_lb.observation import Sample
    from vllm_lb.policies import Moment, Verdict
    from vllm_lb.settings import Health


@data()
class Judgement:
    """A node's state and weight, with the cause and the reason."""

    state: str
    weight: int
    cause: NodeCause
    reason: str


@data()
class Levels:
    """The weights of a node without a usable reading."""

    lowest: int
    stale: int  # for a node that has not been read for health.stale_after_seconds


def judge(  # noqa: PLR0913, PLR0917 - all that is known of one node
    was: NodeMemory,
    memory: NodeMemory,
    sample: Sample,
    verdict: Verdict | None,
    levels: Levels,
    health: Health,
    moment: Moment,
) -> Judgement:
    """Return the judgement on a node. `verdict` is what the pool's policy says, if the node could be read."""
    if sample.reading and not sample.reading.awake:
        judgement = Judgement("down", 0, NodeCause.ASLEEP, "asleep")
    elif verdict:
        judgement = judge_read(was, memory, verdict, levels, health, moment)
    else:
        judgement = judge_unread(was, memory, sample.error or "no reading", levels, health, moment.now)
    if sample.reading and sample.error:
        judgement = dataclasses.replace(judgement, reason=f"{judgement.reason}; {sample.error}")
    if sample.unresolved:
        addition = f"; its name does not resolve ({sample.unresolved}), last address used"
        judgement = dataclasses.replace(judgement, reason=judgement.reason + addition)
    return judgement


def judge_read(
    was: NodeMemory, memory: NodeMemory, verdict: Verdict, levels: Levels, health: Health, moment: Moment
) -> Judgement:
    """Return the judgement on a node that could be read and is awake."""
    if not memory.up:
        counted = f"{memory.successes} of {good_scrapes_needed(was, health)} good scrapes"
        return Judgement("down", 0, NodeCause.RECOVERING, counted)
    if was.up is False:
        back = f"back after {memory.successes} good scrapes"
        if moment.slow_start:
            return Judgement("up", levels.lowest, NodeCause.SLOW_START, f"{back}, starting low")
        return Judgement("up", verdict.weight, NodeCause.RETURNED, f"{back}: {verdict.reason}")
    if moment.slow_start and moment.is_too_soon(memory.returned_at):
        return Judgement("up", levels.lowest, NodeCause.SLOW_START, "back for less than an interval, starting low")
    if still := frozen_for_seconds(memory, health):
        reason = f"has requests, and reports nothing new for {still:.0f} s"
        return Judgement("unknown", levels.stale, NodeCause.FROZEN, reason)
    return Judgement("up", verdict.weight, verdict.cause, verdict.reason)


def judge_unread(
    was: NodeMemory, memory: NodeMemory, error: str, levels: Levels, health: Health, now: float
) -> Judgement:
    """Return the judgement on a node that could not be read, because of `error`."""
    counted = f"{error} ({memory.failures} of {health.fall})" if memory.failures else error
    if memory.up is False and memory.failures:
        return Judgement("down", 0, NodeCause.UNREACHABLE, f"{error}, {memory.failures} in a row")
    if memory.up is False:
        return Judgement("down", 0, NodeCause.UNREADABLE, error)
    if memory.read_at is None:
        return Judgement("unknown", levels.lowest, NodeCause.NEVER_READ, f"{counted}, never read")
    age = now - memory.read_at
    if was.weight and age <= health.stale_after_seconds:
        return Judgement("unknown", was.weight, NodeCause.HELD, f"{counted}, last weight held")
    return Judgement("unknown", levels.stale, NodeCause.STALE, f"{counted}, not read for {age:.0f} s")
