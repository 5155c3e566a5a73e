"""The variables of the role vllm_nginx_lb that become config.yml, checked by the script's own schema.

A path of config.yml in a message is replaced by the variable that sets it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

from vllm_lb import config_file, schema, settings

from . import specs
from .values import plain, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Node = dict[str, Any]

ROLE = "vllm_nginx_lb"
DEFAULT_POOL = "llm_cluster"
# The records of config.yml, by their paths, and the beginnings of the variables that set their fields
RECORDS: dict[str, tuple[str, type]] = {
    "": ("vllm_nginx_lb_", settings.Config),
    "scrape.": ("vllm_nginx_lb_scrape_", settings.Scrape),
    "nginx.": ("vllm_nginx_lb_", settings.NginxSettings),
    "health.": ("vllm_nginx_lb_", settings.Health),
    "policies.capacity.": ("vllm_nginx_lb_capacity_", settings.Capacity),
    "policies.stepped.": ("vllm_nginx_lb_stepped_", settings.Stepped),
}
POOL_PREFIX = "vllm_nginx_lb_"
# The role leaves these out of config.yml if they are empty.
MAY_BE_EMPTY = ("vllm_nginx_lb_confirm_url", "vllm_nginx_lb_scrape_ca_file")
KINDS: dict[Any, str] = {int: "int", float: "float", bool: "bool"}
SOUND_NODE = {"name": "node", "host": "node"}


def variables_by_path() -> dict[str, str]:
    """Return the variables that set one setting each, by its path in config.yml."""
    known = specs.variables(ROLE)
    return {
        path + field.name: prefix + field.name
        for path, (prefix, record) in RECORDS.items()
        for field in dataclasses.fields(record)
        if prefix + field.name in known and field.name != "pools"
    }


def pool_variables() -> dict[str, str]:
    """Return the variables that set a setting of all pools, by its name."""
    known = specs.variables(ROLE)
    return {
        field.name: POOL_PREFIX + field.name
        for field in dataclasses.fields(settings.Pool)
        if POOL_PREFIX + field.name in known and field.name != "nodes"
    }


def cast(record: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a record with the types that it declares; ansible-core 2.16 turns values into texts."""
    kinds = {field.name: KINDS.get(field.type, "raw") for field in dataclasses.fields(record)}
    return {key: plain(value, kinds.get(key, "raw")) for key, value in given.items()}


def known_keys(pool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a pool that there are. The role's preflight reports the others."""
    known = {field.name for field in dataclasses.fields(settings.Pool)} - {"name", "nodes"}
    return {key: value for key, value in pool.items() if key in known}


def nodes_by_pool(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Return the nodes of each pool as config.yml has them, without their pools."""
    pools: dict[str, list[Node]] = {}
    for node in nodes:
        inner = {key: value for key, value in node.items() if key != "pool"}
        pools.setdefault(str(node.get("pool", DEFAULT_POOL)), []).append(cast(settings.Node, inner))
    return pools


def config_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.yml of the variables of a host. Without nodes it has one that is sound."""
    options = specs.variables(ROLE)
    raw: dict[str, Any] = {"nginx": {}, "scrape": {}, "health": {}, "policies": {"capacity": {}, "stepped": {}}}
    for path, name in variables_by_path().items():
        if name in values and not (values[name] == "" and name in MAY_BE_EMPTY):
            *records, key = path.split(".")
            place = raw
            for record in records:
                place = place[record]
            place[key] = typed(values[name], options[name])
    of_all = {key: typed(values[name], options[name]) for key, name in pool_variables().items() if name in values}
    of_one = {name: pool for name, pool in values.get("vllm_nginx_lb_pools", {}).items() if isinstance(pool, dict)}
    pools = nodes_by_pool(values.get("vllm_nginx_lb_nodes", [])) or {DEFAULT_POOL: [SOUND_NODE]}
    raw["pools"] = [
        {"name": pool, **of_all, **cast(settings.Pool, known_keys(of_one.get(pool, {}))), "nodes": nodes}
        for pool, nodes in pools.items()
    ]
    return raw


def config_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each value that the script would refuse in config.yml.

    Args:
        values: the variables of a host whose types are right.
    """
    raw = config_of(values)
    problems: list[str] = []
    config = schema.build(settings.Config, raw, "", problems)
    if config is not MISSING and not problems:
        problems = list(config_file.problems_across_fields(config))
    yield from dict.fromkeys(told(each, raw, values) for each in problems)


def told(problem: str, raw: dict[str, Any], values: Mapping[str, Any]) -> str:
    """Return a line of the schema, `path: value: expected words`, in the words of the roles."""
    names = variables_by_path()

    def of_pool(found: re.Match[str]) -> str:
        pool, key = raw["pools"][int(found["pool"])], found["key"]
        if found["node"]:
            return f"vllm_nginx_lb_nodes[{pool['nodes'][int(found['node'])].get('name')}]{'.' + key if key else ''}"
        if key in values.get("vllm_nginx_lb_pools", {}).get(pool["name"], {}) or key not in pool_variables():
            return f"vllm_nginx_lb_pools.{pool['name']}.{key}"
        return pool_variables()[key]

    line = re.sub(r"pools\[(?P<pool>\d+)\](?:\.nodes\[(?P<node>\d+)\])?(?:\.(?P<key>\w+))?", of_pool, problem)
    line = re.sub(r"\b[a-z_]+(?:\.[a-z_]+)*\b", lambda found: names.get(found[0], found[0]), line)
    found = re.fullmatch(r"(?s)(.+?): (.*?)(?:: )?expected (.*)", line)
    if not found:
        return line
    where, value, allowed = found.groups()
    if value in ("missing", "unknown key"):
        return f"{where}: {value}; allowed is {allowed}; {'add' if value == 'missing' else 'correct or remove'} it"
    return f"{where} is {value}; allowed is {allowed}; correct it"
