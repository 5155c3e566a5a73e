# SPDX-License-Identifier: Apache-2.0
"""The plan, which `collect` hands to `apply`, and its validation."""

from collections.abc import Iterator
from dataclasses import MISSING
from typing import Any

from vllm_lb.addresses import canonical, is_ip
from vllm_lb.causes import FailureCause, HeldCause, NodeCause, ScrapeCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.schema import build, choice, number, setting, text
from vllm_lb.settings import MAX_ENGINES, MAX_WEIGHT, NAME, POOL_NAME, Config, Pool
from vllm_lb.text import PRINTABLE, printable

STATES = ("up", "down", "unknown", "drained")
TIME = r"[0-9T:.Z+-]{20,40}"


@data(kw_only=True)
class NodePlan:
    """What is decided for one node, and why. Weight 0 is written as nginx's `down`."""

    name: str = text(NAME, "a node's name")
    address: str | None = setting("an IP address", is_ip)
    state: str = choice(*STATES)
    kv_cache_usage: float | None = number(0, 1)
    waiting: int | None = number(0, 2**60)
    running: int | None = number(0, 2**60)
    preemptions_delta: int | None = number(0, 2**60)
    engines: int | None = number(1, MAX_ENGINES)
    weight: int = number(0, MAX_WEIGHT)
    previous_weight: int | None = number(0, MAX_WEIGHT)
    cause: str = choice(*NodeCause)
    reason: str = text(PRINTABLE, "printable text")
    scrape_seconds: float = number(0, 86400)
    error_cause: str | None = choice(*ScrapeCause)
    error: str | None = text(PRINTABLE, "printable text")
    drained_since: str | None = text(TIME, "an RFC 3339 time", None)  # by the operator
    drain_reason: str | None = text(PRINTABLE, "printable text", None)  # what the operator gave
    kv_cache_tokens: int | None = number(1, 2**60, None)  # that its KV caches hold


@data(kw_only=True)
class PoolPlan:
    """One pool's nodes, and why the pool does not get the weights that follow from its readings."""

    name: str = text(POOL_NAME, "a pool's name")
    held_cause: str | None = choice(*HeldCause)
    held: str | None = text(PRINTABLE, "printable text")
    nodes: tuple[NodePlan, ...] = ()


@data(kw_only=True, slots=False)  # without slots: Status inherits from this and from Outcome
class Plan:
    """The decision of one tick."""

    version: int = number(1, 1)
    decided_at: str = text(TIME, "an RFC 3339 time")
    pools: tuple[PoolPlan, ...] = ()


def check_plan(raw: Any, config: Config) -> Plan:
    """Validate a plan as if an attacker had written it.

    A plan may only set weights, and the addresses of nodes whose host is a name.

    Raises:
        FailureError: the plan is refused; the message names the first problem.
    """
    problems: list[str] = []
    plan = build(Plan, raw, "plan", problems)
    if plan is not MISSING and not problems:
        problems = list(disagreements(plan, config))
    if problems:
        problem = f"plan refused: {printable(problems[0])}: the next collect writes a new one"
        raise FailureError(FailureCause.PLAN_REFUSED, problem)
    assert isinstance(plan, Plan)  # tells the type checker what build() returned
    return plan


def disagreements(plan: Plan, config: Config) -> Iterator[str]:
    """Yield what in a well-formed plan contradicts the configuration."""
    if [pool.name for pool in plan.pools] != [pool.name for pool in config.pools]:
        yield "its pools are not the configured ones"
        return
    for planned, pool in zip(plan.pools, config.pools, strict=True):
        if [node.name for node in planned.nodes] != [node.name for node in pool.nodes]:
            yield f"pool {pool.name}: its nodes are not the configured ones"
            return
        yield from disagreements_of_pool(planned, pool)


def disagreements_of_pool(planned: PoolPlan, pool: Pool) -> Iterator[str]:
    """Yield what in a pool with the right nodes contradicts the configuration."""
    pairs = list(zip(planned.nodes, pool.nodes, strict=True))
    if any(at.address or is_ip(node.host) for at, node in pairs) and not any(at.weight for at, _ in pairs):
        yield f"pool {pool.name}: no node would serve"
    serving: set[tuple[str | None, int]] = set()
    for at, node in pairs:
        if at.weight and (at.address, node.port) in serving:
            yield f"node {node.name}: address {at.address} twice in the pool"
        if at.weight:
            serving.add((at.address, node.port))
        if at.address is None and at.weight:
            yield f"node {node.name}: a weight without an address"
        if at.address and is_ip(node.host) and at.address != canonical(node.host):
            yield f"node {node.name}: address {at.address} instead of {node.host}"
