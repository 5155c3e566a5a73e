# SPDX-License-Identifier: Apache-2.0
"""The half of a tick without privileges: it scrapes, decides, and leaves a plan for `apply`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.decide import decide
from vllm_lb.drains import read_drains, with_drains
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.files import write_atomically
from vllm_lb.history import History, Tick
from vllm_lb.journal import NOTICE, WARNING, log
from vllm_lb.memory import NodeMemory, stored
from vllm_lb.memory_file import read_memory
from vllm_lb.own_host import look
from vllm_lb.plan import Plan
from vllm_lb.prometheus import metrics
from vllm_lb.readings import readings
from vllm_lb.scrape import scrape_all
from vllm_lb.text import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vllm_lb.plan import NodePlan
    from vllm_lb.settings import Config, Scrape
    from vllm_lb.state import State

KEY = re.compile(r"[!-~]+")


def collect_command(config: Config, state: State, config_file: Path) -> None:
    """Scrape and decide. Write the plan for `apply`, the memory, the metrics, the history, and nginx's readings."""
    raise_open_file_limit()
    tick = scrape_and_decide(config, state)
    log_changes(tick)
    log_membership(state.decided_nodes(), [(pool.name, node.name) for pool in tick.plan.pools for node in pool.nodes])
    state.write("plan.json", dataclasses.asdict(tick.plan))
    state.write("memory.json", {name: stored(each) for name, each in tick.after.items()})
    text = metrics(config, hashlib.sha256(config_file.read_bytes()).hexdigest(), tick, look(config.own_host))
    writers: list[Callable[[], None]] = [
        lambda: write_atomically(state.directory / "metrics.prom", text, 0o644, sync=False),
        lambda: History(state.directory, config.history_max_bytes).add(tick),
    ]
    if config.nginx.balancer == "work":
        text_for_lua = readings(config, tick.plan)
        writers.append(lambda: write_atomically(state.directory / "readings.json", text_for_lua, 0o644, sync=False))
    for write in writers:
        try:
            write()
        except FailureError as failure:  # must not keep the weights from going out
            log(WARNING, str(failure))


def scrape_and_decide(config: Config, state: State) -> Tick:
    """Scrape all nodes and decide; write nothing."""
    check_ca_file(config.scrape)
    memory, last, drains = read_memory(state.directory / "memory.json"), state.last(), read_drains(state)
    nodes = [node for pool in config.pools for node in pool.nodes]
    known = {node.name: memory.get(node.name, NodeMemory()) for node in nodes}
    addresses = {node.name: known[node.name].address for node in nodes if known[node.name].host == node.host}
    samples = scrape_all(nodes, config.scrape, read_api_keys(config.scrape), addresses)
    now, applied = time.monotonic(), last is None or last.applied
    drained = frozenset(drains.nodes)
    pools, after = decide(config, samples, memory, drained, now, applied=applied)
    pools = tuple(with_drains(pool, drains) for pool in pools)
    plan = Plan(version=1, decided_at=timestamp(), pools=pools)
    return Tick(now, samples, memory, drained, last, applied, plan, after)


def raise_open_file_limit() -> None:
    """Let the process open as many files as it may: systemd's soft limit of 1,024 is for programs that use select()."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # the hard limit may be above fs.nr_open, if somebody lowered that
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def read_api_keys(settings: Scrape) -> list[str]:
    """Return the bearer tokens for /metrics: the present one, then the former one, where there are any."""
    names = ("api_key_file", "former_api_key_file")
    return [read_key(name, path) for name in names if (path := getattr(settings, name))]


def read_key(name: str, path: str) -> str:
    """Return the key in the file of a setting. No message ever shows it."""
    where = f"scrape.{name}: {path}"
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise FailureError(FailureCause.SECRET_UNREADABLE, f"{where}: {why}", EXIT_USAGE) from error
    if not KEY.fullmatch(key):
        problem = f"{where}: expected one line with the key"
        raise FailureError(FailureCause.SECRET_UNREADABLE, problem, EXIT_USAGE)
    return key


def check_ca_file(settings: Scrape) -> None:
    """Refuse a CA file that cannot be used: with it, every node with TLS would seem to be down."""
    if not settings.ca_file:
        return
    import ssl

    try:
        ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        problem = f"scrape.ca_file: {settings.ca_file}: {error.strerror}: expected certificates in PEM"
        raise FailureError(FailureCause.SECRET_UNREADABLE, problem, EXIT_USAGE) from error


def log_changes(tick: Tick) -> None:
    """Log what this tick changed: a node's health as a warning, a weight as a notice."""
    for pool in tick.plan.pools:
        for node in pool.nodes:
            fields = {"pool": pool.name, "node": node.name, "state": node.state, "weight": node.weight}
            fields["cause"] = node.cause
            if has_new_trouble(node, tick.memory, tick.after[node.name]):
                line = f"{pool.name}/{node.name}: {node.state}: {node.reason}"
                log(WARNING, line, error_cause=node.error_cause, **fields)
            if node.weight != node.previous_weight:
                before = "new" if node.previous_weight is None else node.previous_weight
                line = f"{pool.name}/{node.name}: weight {before} -> {node.weight}: {node.reason}"
                log(NOTICE, line, previous_weight=node.previous_weight, **fields)


def log_membership(before: Iterable[tuple[str, str]], now: Iterable[tuple[str, str]]) -> None:
    """Log which nodes were removed from config.yml or moved to another pool; both have pools and nodes.

    A node that is new has a line for its first weight. What becomes of a removal is in the line about the publication.
    """
    pools_of = dict[str, list[str]]()
    present = set(now)
    for pool, node in sorted(present):
        pools_of.setdefault(node, []).append(pool)
    for pool, node in sorted(set(before) - present):
        to = ", ".join(pools_of.get(node, ()))
        what = f"moved to pool {to}" if to else "removed from the configuration"
        log(NOTICE, f"{pool}/{node}: {what}", pool=pool, node=node, state="removed")


def has_new_trouble(node: NodePlan, memory: Mapping[str, NodeMemory], after: NodeMemory) -> bool:
    """Tell whether a node has trouble that the tick before did not have."""
    was = memory.get(node.name, NodeMemory())
    if (was.resolves and not after.resolves) or (after.doubt and after.doubt != was.doubt):
        return True
    if after.successes:
        return False
    return node.error_cause is not None and (was.successes > 0 or was == NodeMemory() or was.up != after.up)
