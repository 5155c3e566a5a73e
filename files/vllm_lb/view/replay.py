# SPDX-License-Identifier: Apache-2.0
"""The command `replay`: what other settings would have decided in recorded ticks.

Recorded readings are the effect of recorded weights. A replay shows what other settings would have decided on these
readings. It cannot show which readings the other weights would have caused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from vllm_lb.causes import FailureCause, ScrapeCause
from vllm_lb.config_file import check_config, read_yaml
from vllm_lb.decide import decide
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.history import READING
from vllm_lb.memory import memory_of
from vllm_lb.observation import Reading, Sample
from vllm_lb.view.history_reader import files_of, local_time, read_history
from vllm_lb.view.table import aligned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from vllm_lb.memory import NodeMemory
    from vllm_lb.plan import PoolPlan
    from vllm_lb.settings import Config
    from vllm_lb.state import State
    from vllm_lb.view.history_reader import Past

HEADINGS = ("NODE", "WEIGHT, RECORDED", "REPLAYED", "CHANGES, RECORDED", "REPLAYED", "TICKS THAT DIFFER")


@dataclass(slots=True)
class Replayed:
    """The result of a replay, beside what was recorded."""

    times: list[str] = field(default_factory=list)
    weights: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # of each node: recorded, replayed


def replay_command(
    config_file: Path, state: State, files: Sequence[Path], *, policy: str | None, changes: Sequence[str]
) -> None:
    """Run recorded ticks through the configuration with other settings, and print what it would have decided.

    Raises:
        FailureError: a setting cannot be used, or there is nothing to replay.
    """
    config, found = with_changes(config_file, policy, changes), Replayed()
    for past, pools in replayed_ticks(config, read_history(files or files_of(state))):
        found.times.append(past.at)
        for node in (node for pool in pools for node in pool.nodes):
            weights = found.weights.setdefault(node.name, [])
            if weights and weights[-1][1] != node.weight:
                print(f"{local_time(past.at)}  {node.name}: weight {weights[-1][1]} -> {node.weight}: {node.reason}")
            weights.append(((past.node(node.name) or {}).get("weight", 0), node.weight))
    if not found.times:
        problem = "no configured node is in the history: nothing to replay"
        raise FailureError(FailureCause.NOTHING_TO_REPLAY, problem)
    print("", *summary(found), sep="\n")


def with_changes(config_file: Path, policy: str | None, changes: Sequence[str]) -> Config:
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
            problem = f"--set: {each!r}: expected KEY=VALUE, such as health.fall=5"
            raise FailureError(FailureCause.USAGE, problem, EXIT_USAGE)
        with contextlib.suppress(yaml.YAMLError, ValueError):  # what is no YAML is a text, which check_config refuses
            value = yaml.safe_load(value)
        at[last] = value
    return check_config(raw, config_file)


def replayed_ticks(config: Config, ticks: Iterable[Past]) -> Iterator[tuple[Past, tuple[PoolPlan, ...]]]:
    """Yield each recorded tick with what would have been decided in it for the nodes that it had."""
    memory: dict[str, NodeMemory] = {}
    names, present, agrees = frozenset[str](), config, True
    for past in ticks:
        rows = {name: row for name in past.rows if (row := past.node(name))}
        if names != rows.keys():
            names = frozenset(rows)
            present = only_nodes(config, names)
        if agrees and past.memory is not None:
            memory = first_memory(past)
        if present.pools:
            samples = {node.name: sample_of(rows[node.name]) for pool in present.pools for node in pool.nodes}
            # If the record says that its decision did not go live, that is not known of another decision.
            applied = past.applied if agrees else True
            pools, memory = decide(present, samples, memory, past.drained, past.now, applied=applied)
            agrees = all(node.weight == rows[node.name]["weight"] for pool in pools for node in pool.nodes)
            yield past, pools


def only_nodes(config: Config, names: AbstractSet[str]) -> Config:
    """Return the configuration without nodes that a tick did not have, and without pools that have none left."""
    pools = [
        dataclasses.replace(pool, nodes=nodes)
        for pool in config.pools
        if (nodes := tuple(node for node in pool.nodes if node.name in names))
    ]
    return dataclasses.replace(config, pools=tuple(pools))


def first_memory(past: Past) -> dict[str, NodeMemory]:
    """Return the memory at the beginning of a tick, as far as it is known."""
    return {name: each for name, raw in (past.memory or {}).items() if (each := memory_of(raw, name, []))}


def sample_of(row: Mapping[str, Any]) -> Sample:
    """Return the sample that a row of the history was made from."""
    # The release before the package wrote no codes.
    code = row["error_cause"] or (ScrapeCause.UNEXPECTED if row["error"] else None)
    return Sample(
        address=row["address"],
        seconds=float(row["seconds"] or 0),
        reading=None if row["engines"] is None else Reading(**{name: row[name] for name in READING}),
        error=row["error"],
        cause=ScrapeCause(code) if code else None,
        answered=row["answered"] is not False,
        unresolved=row["unresolved"],
    )


def summary(found: Replayed) -> Iterator[str]:
    """Yield what differs between what was decided and what would have been."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name, weights in found.weights.items():
        both = list(zip(*weights, strict=True))
        means = [f"{sum(each) / len(each):.1f}" for each in both]
        changes = [str(sum(a != b for a, b in itertools.pairwise(each))) for each in both]
        rows.append((name, *means, *changes, str(sum(recorded != replayed for recorded, replayed in weights))))
    yield from aligned(rows)
    yield ""
    yield f"{len(found.times)} ticks from {local_time(found.times[0])} to {local_time(found.times[-1])}"
