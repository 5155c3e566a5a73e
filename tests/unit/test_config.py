"""The configuration: accepted values, and the one line about each refused value."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from vllm_lb.addresses import is_host
from vllm_lb.config_file import load_config
from vllm_lb.errors import EXIT_USAGE, FailureError

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lb.settings import Config

MINIMAL: dict[str, Any] = {"pools": [{"name": "llm_cluster", "nodes": [{"name": "node-a", "host": "10.0.0.10"}]}]}


def load(tmp_path: Path, content: str) -> Config:
    path = tmp_path / "config.yml"
    path.write_text(content)
    return load_config(path)


def changed(path: str, value: object) -> str:
    """Return the minimal configuration with one key set, as YAML."""
    raw = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    at: Any = raw
    for key in parents:
        at = at[int(key)] if key.isdigit() else at.setdefault(key, {})
    at[last] = value
    return yaml.safe_dump(raw)


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    config = load(tmp_path, yaml.safe_dump(MINIMAL))
    pool = config.pools[0]
    assert config.state_directory == "/var/lib/vllm-nginx-lb"
    assert (config.scrape.path, config.scrape.timeout_seconds, config.scrape.workers) == ("/metrics", 5, 32)
    assert config.nginx.test_command == ("nginx", "-t")
    assert config.nginx.reload_command == ("nginx", "-s", "reload")
    assert config.nginx.min_reload_interval_seconds == 30
    assert (config.health.fall, config.health.rise, config.health.stale_after_seconds) == (3, 2, 180)
    assert (pool.method, pool.policy, pool.keepalive_timeout_seconds) == ("least_conn", "capacity", 2)
    assert (pool.nodes[0].port, pool.nodes[0].scheme, pool.nodes[0].capacity) == (18090, "http", 1)
    assert config.policies.stepped.levels == (100, 60, 30, 10)
    capacity = config.policies.capacity
    assert (capacity.lowest_weight, capacity.speed_exponent, capacity.max_kv_cache_usage) == (10, 1.5, 0.7)
    assert (capacity.sudden_change_ratio, capacity.min_change_ratio) == (0.5, 0.15)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("scrap", {}, "'scrap': unknown key: expected one of state_directory, interval_seconds"),
        ("scrape.timeout", 3, "scrape.'timeout': unknown key"),
        ("scrape.timeout_seconds", "3", "scrape.timeout_seconds: '3': expected a number from 0.1 to 60"),
        ("scrape.timeout_seconds", float("nan"), "scrape.timeout_seconds: nan: expected a number"),
        ("scrape.workers", True, "scrape.workers: True: expected a number from 1 to 1024"),
        ("scrape.workers", 2.5, "scrape.workers: 2.5: expected a number from 1 to 1024"),
        ("scrape.workers", None, "scrape.workers: None: expected a number from 1 to 1024"),
        ("scrape.path", "metrics", "scrape.path: 'metrics': expected a path that starts with /"),
        ("scrape", None, "scrape: None: expected a mapping"),
        ("nginx.upstream_file", "upstream.conf", "nginx.upstream_file: 'upstream.conf': expected an absolute path"),
        ("nginx.test_command", "nginx -t", "nginx.test_command: 'nginx -t': expected a list of at least one word"),
        ("nginx.test_command", [], "nginx.test_command: []: expected a list of at least one word"),
        ("nginx.test_command", [1], "nginx.test_command[0]: 1: expected a text"),
        ("nginx.confirm_url", "unix:/x", "nginx.confirm_url: 'unix:/x': expected an http(s) URL, or null"),
        ("health.fall", 0, "health.fall: 0: expected a number from 1 to 1000"),
        ("pools", [], "pools: []: expected a list of at least one pool"),
        ("pools", {}, "pools: {}: expected a list of at least one pool"),
        ("pools.0.name", "a-b", "pools[0].name: 'a-b': expected a letter, then up to 62 of"),
        ("pools.0.method", "ip_hash", "pools[0].method: 'ip_hash': expected one of least_conn, round_robin"),
        ("pools.0.policy", "fancy", "pools[0].policy: 'fancy': expected one of capacity, stepped, static"),
        ("pools.0.nodes", [], "pools[0].nodes: []: expected a list of at least one node"),
        ("pools.0.nodes.0.name", "a;b", "pools[0].nodes[0].name: 'a;b': expected 1 to 63 of"),
        ("pools.0.nodes.0.name", "a\n", "pools[0].nodes[0].name: 'a\\n': expected 1 to 63 of"),
        ("pools.0.nodes.0.host", "x; }", "pools[0].nodes[0].host: 'x; }': expected an IP address or a host name"),
        ("pools.0.nodes.0.host", "10.0.0.300", "pools[0].nodes[0].host: '10.0.0.300': expected an IP address"),
        ("pools.0.nodes.0.host", "fe80::1%eth0", "pools[0].nodes[0].host: 'fe80::1%eth0': expected an IP address"),
        ("pools.0.nodes.0.port", 65536, "pools[0].nodes[0].port: 65536: expected a number from 1 to 65535"),
        ("pools.0.nodes.0.scheme", "ftp", "pools[0].nodes[0].scheme: 'ftp': expected one of http, https"),
        ("pools.0.nodes.0.capacity", 10**400, "pools[0].nodes[0].capacity: 1000"),
        ("pools.0.nodes.0.capacity", 0, "pools[0].nodes[0].capacity: 0: expected a number from 0.01 to 100"),
        ("pools.0.nodes.0.drain", "no", "pools[0].nodes[0].drain: 'no': expected true or false"),
        ("pools.0.nodes.0.drain", True, "pools[0].nodes: every node has drain: true: expected at least one"),
        ("policies.stepped.levels", [10, 20], "policies.stepped.levels: [10, 20]: expected weights from 100 to 1"),
        ("policies.capacity.lowest_weight", 0, "policies.capacity.lowest_weight: 0: expected a number from 1 to 100"),
        (
            "policies.stepped.kv_cache",
            [{"at_least": 0.5, "weight": 50}],
            "policies.stepped.kv_cache[0].weight: 50: expected one of levels [100, 60, 30, 10]",
        ),
    ],
)
def test_each_problem_is_one_line(tmp_path: Path, key: str, value: object, line: str) -> None:
    with pytest.raises(FailureError) as failure:
        load(tmp_path, changed(key, value))
    assert failure.value.code == EXIT_USAGE
    (message,) = str(failure.value).splitlines()
    assert message.startswith(f"{tmp_path}/config.yml: {line}")


def test_one_address_in_two_spellings_is_one_address(tmp_path: Path) -> None:
    raw = copy.deepcopy(MINIMAL)
    raw["pools"][0]["nodes"] = [{"name": "a", "host": "2001:db8::1"}, {"name": "b", "host": "2001:DB8:0::1"}]
    with pytest.raises(FailureError, match="already used by"):
        load(tmp_path, yaml.safe_dump(raw))


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FailureError) as failure:
        load(tmp_path, "scrape: {workers: 0}\nhealth: {rise: x}\npools: [{name: p, nodes: [{}]}]\n")
    lines = str(failure.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "scrape.workers",
        "health.rise",
        "pools[0].nodes[0].name",
        "pools[0].nodes[0].host",
    ]


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (
            {"name": "node-a", "host": "10.0.0.11"},
            "pools[0].nodes[1].name: 'node-a': already used by pools[0].nodes[0]",
        ),
        ({"name": "node-b", "host": "10.0.0.10"}, "pools[0].nodes[1].host: '10.0.0.10:18090': already used by"),
    ],
)
def test_duplicates_are_refused(tmp_path: Path, second: dict[str, str], line: str) -> None:
    raw = copy.deepcopy(MINIMAL)
    raw["pools"][0]["nodes"].append(second)
    with pytest.raises(FailureError) as failure:
        load(tmp_path, yaml.safe_dump(raw))
    assert line in str(failure.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected a mapping"),
        ("- a", "expected a mapping"),
        ("a: [", "not YAML"),
        ("a: 2024-13-45", "not YAML"),
        ("[" * 3000, "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: \x01", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(FailureError, match=words) as failure:
        load(tmp_path, content)
    assert failure.value.code == EXIT_USAGE
    assert len(str(failure.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"none\.yml: No such file or directory") as failure:
        load_config(tmp_path / "none.yml")
    assert failure.value.code == EXIT_USAGE


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "2001:db8::1", "gpu-1", "gpu_1.example.org", "a.b.c."])
def test_hosts_that_are_accepted(host: str) -> None:
    assert is_host(host)


def test_a_deadband_that_would_hold_back_what_capacity_decides_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    pool = {"name": "p", "policy": "capacity", "nodes": [{"name": "a", "host": "127.0.0.1"}]}
    path.write_text(yaml.safe_dump({"pools": [pool], "nginx": {"min_weight_change_ratio": 0.2}}))
    with pytest.raises(FailureError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: nginx.min_weight_change_ratio: 0.2: expected at most policies.capacity.min_change_ratio, 0.15: "
        "else what is decided would not be published"
    )
