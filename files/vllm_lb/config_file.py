# SPDX-License-Identifier: Apache-2.0
"""config.yml: reading it, and the rules that cross its fields."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

from vllm_lb.addresses import canonical
from vllm_lb.causes import FailureCause
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.schema import build
from vllm_lb.settings import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_lb.settings import NginxSettings, Pool, Stepped

COMMENTS = re.compile(rb"\A(?:#[^\n]*\n|\s)+")  # comments and empty lines at the beginning


def load_config(path: Path) -> Config:
    """Read and check the configuration.

    Raises:
        FailureError: with exit code 2 and one line for each problem.
    """
    return check_config(read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; raise a FailureError with exit code 2 if that is not possible."""
    try:
        content = path.read_bytes()
    except OSError as error:
        advice = "; only root and the service may read it: use sudo" if isinstance(error, PermissionError) else ""
        problem = f"{path}: {error.strerror}: expected a readable configuration{advice}"
        raise FailureError(FailureCause.CONFIG_UNREADABLE, problem, EXIT_USAGE) from error
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(COMMENTS.sub(b"", content))
    return parsed_yaml(content, path)


def parsed_yaml(content: bytes, path: Path) -> Any:
    """Return what a YAML text says. Ansible writes JSON, which is YAML and is read ten times faster, without PyYAML."""
    import yaml

    # The C loader reads 1,000 nodes in a tenth of the time; some builds of PyYAML lack it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(content, Loader=loader)  # noqa: S506 - both loaders are safe ones
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        problem = f"{path}: not YAML: {' '.join(str(error).split())}"
        raise FailureError(FailureCause.CONFIG_UNREADABLE, problem, EXIT_USAGE) from error


def check_config(raw: Any, path: Path) -> Config:
    """Check what was read from a file; raise a FailureError with exit code 2 and one line for each problem."""
    problems: list[str] = []
    config = build(Config, raw, "", problems)
    if config is not MISSING and not problems:
        problems = list(problems_across_fields(config))
    if problems:
        lines = "\n".join(f"{path}: {problem.removeprefix(': ')}" for problem in problems)
        raise FailureError(FailureCause.CONFIG_INVALID, lines, EXIT_USAGE)
    assert isinstance(config, Config)  # tells the type checker what build() returned
    return config


def problems_across_fields(config: Config) -> Iterator[str]:
    """Yield a line for each problem that no single field shows."""
    yield from problems_of_nginx(config.nginx)
    yield from problems_of_pools(config.pools)
    yield from problems_of_deadband(config)
    yield from problems_of_ladder(config.policies.stepped)


def problems_of_nginx(settings: NginxSettings) -> Iterator[str]:
    """Yield a line for each setting that contradicts the balancer."""
    if settings.balancer == "work" and settings.upstream_template:
        yield "nginx.upstream_template: expected null with balancer: work, which reads JSON"
    if settings.balancer == "work" and not settings.confirm_url:
        yield "nginx.confirm_url: expected a URL with balancer: work: nothing else says whether nginx uses a file"


def problems_of_pools(pools: tuple[Pool, ...]) -> Iterator[str]:
    """Yield a line for each name, model or address that is used twice, and for each pool that is drained as a whole."""
    first_use: dict[str, str] = {}
    for p, pool in enumerate(pools):
        uses = [(f"pools[{p}].name", pool.name, "a pool")]
        uses += [(f"pools[{p}].models[{m}]", model, "a model") for m, model in enumerate(pool.models)]
        for n, node in enumerate(pool.nodes):
            where = f"pools[{p}].nodes[{n}]"
            address = f"{canonical(node.host)}:{node.port}"
            uses += [(f"{where}.name", node.name, "a node"), (f"{where}.host", address, "an address")]
        for where, value, kind in uses:
            earlier = first_use.setdefault(f"{kind} {value}", where)
            if earlier != where:
                yield f"{where}: {value!r}: already used by {earlier}: expected {kind} of its own"
        if all(node.drain for node in pool.nodes):
            yield f"pools[{p}].nodes: every node has drain: true: expected at least one that serves"


def problems_of_deadband(config: Config) -> Iterator[str]:
    """Yield a line if the policy `capacity` decides changes that are too small to be published."""
    deadband, least = config.nginx.min_weight_change_ratio, config.policies.capacity.min_change_ratio
    if deadband > least and any(pool.policy == "capacity" for pool in config.pools):
        yield (
            f"nginx.min_weight_change_ratio: {deadband:g}: expected at most policies.capacity.min_change_ratio, "
            f"{least:g}: else what is decided would not be published"
        )


def problems_of_ladder(stepped: Stepped) -> Iterator[str]:
    """Yield a line for each step to a weight that is not one of the levels."""
    for k, step in enumerate(stepped.kv_cache):
        if step.weight not in stepped.levels:
            yield f"policies.stepped.kv_cache[{k}].weight: {step.weight}: expected one of levels {list(stepped.levels)}"
