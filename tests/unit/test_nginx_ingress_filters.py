"""Clients, pools and limits that nginx_ingress refuses, and the limits that it makes of good ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from roles.nginx_ingress.filter_plugins.nginx_ingress import (
    nginx_ingress_address_problems,
    nginx_ingress_limits,
    nginx_ingress_named_files,
    nginx_ingress_networks,
    nginx_ingress_problems,
    nginx_ingress_retry_after,
    nginx_ingress_role_files,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef"
ALL = {"requests_per_minute": "60", "requests_burst": 20, "concurrent_requests": 4}
NONE = {"requests_per_minute": 0, "requests_burst": 20, "concurrent_requests": 0}


def client(name: str = "team-a", key: str = KEY, **changes: Any) -> dict[str, Any]:
    """Return a sound client, with changes."""
    return {"name": name, "key": key, **changes}


def test_sound_settings_have_no_problem() -> None:
    clients = [client(requests_per_minute="5"), client("team-b", f"{KEY}.~+/=-_")]
    pools: dict[str, Any] = {
        "batch": {"path_prefix": "/batch", "concurrent_requests": 2},
        "big": {"server_names": ["*.big.example"], "x_models": ["org/big-70b:awq"]},
    }
    assert nginx_ingress_problems(clients, pools, ALL) == []
    assert nginx_ingress_problems([], {}, NONE) == []


@pytest.mark.parametrize(
    ("clients", "line"),
    [
        (
            [client("a b")],
            "nginx_ingress_clients[0].name is 'a b'; allowed are 1 to 63 of A-Z a-z 0-9 . _ -; correct it",
        ),
        ([{"key": KEY}], "nginx_ingress_clients[0].name is None; allowed are 1 to 63 of A-Z a-z 0-9 . _ -; correct it"),
        (
            [client(rpm=5)],
            (
                "nginx_ingress_clients[0] has 'rpm'; allowed is name, key, expires, keys, requests_per_minute, "
                "requests_burst, concurrent_requests; correct or remove it"
            ),
        ),
        (
            [client(requests_per_minute=-1)],
            (
                "nginx_ingress_clients[0].requests_per_minute is -1; allowed is a number from 0 (no limit) to 1000000; "
                "correct it"
            ),
        ),
        (
            [client(), client("TEAM-A", KEY + "x")],
            "nginx_ingress_clients has the name 'team-a' 2 times, in any case; each must be there once; remove one",
        ),
    ],
)
def test_a_wrong_client(clients: list[dict[str, Any]], line: str) -> None:
    assert nginx_ingress_problems(clients, {}, NONE) == [line]


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ({"a-b": {"path_prefix": "/x"}}, "nginx_ingress_pools.a-b: allowed is a letter, then up to 62"),
        ({"a": {"path_prefix": "/x/"}}, "nginx_ingress_pools.a.path_prefix is '/x/'; allowed is a path such as /batch"),
        ({"a": {"server_names": "x"}}, "nginx_ingress_pools.a.server_names is 'x'; allowed is a list of host names"),
        ({"a": {"x_models": ['"']}}, "nginx_ingress_pools.a.x_models is ['\"']; allowed is a list of names of models"),
        ({"a": {}}, "nginx_ingress_pools.a: no request would go there; give it one of path_prefix, server_names"),
        ({"a": {"path": "/x", "path_prefix": "/x"}}, "nginx_ingress_pools.a has 'path'; allowed is path_prefix,"),
        (
            {"a": {"path_prefix": "/x"}, "b": {"path_prefix": "/x"}},
            "nginx_ingress_pools has the path_prefix '/x' 2 times",
        ),
        (
            {"a": {"path_prefix": "/x"}, "b": {"path_prefix": "/x/y"}},
            "nginx_ingress_pools has path_prefix '/x/y' below '/x'",
        ),
        ({"a": {"x_models": ["M"]}, "b": {"x_models": ["m"]}}, "nginx_ingress_pools has the x_models 'm' 2 times"),
    ],
)
def test_a_wrong_pool(pools: dict[str, Any], words: str) -> None:
    (line,) = nginx_ingress_problems([], pools, NONE)
    assert line.startswith(words)


def test_limits_of_all_of_single_clients_and_of_pools() -> None:
    clients = [client(), client("fast", KEY + "1", requests_per_minute=600), client("free", KEY + "2", **NONE)]
    pools: dict[str, Any] = {
        "batch": {"path_prefix": "/batch", "concurrent_requests": 1},
        "free": {"path_prefix": "/free"},
    }
    by_client = "$vllm_nginx_lb_client"
    assert nginx_ingress_limits(ALL, clients, pools) == [
        {"zone": "all", "selector": by_client, "only": "", "unlike": ["fast", "free"]}
        | {"requests_per_minute": 60, "requests_burst": 20, "concurrent_requests": 4},
        {"zone": "client_0", "selector": by_client, "only": "fast", "unlike": []}
        | {"requests_per_minute": 600, "requests_burst": 20, "concurrent_requests": 4},
        {"zone": "pool_batch", "selector": "$vllm_nginx_lb_pool", "only": "batch", "unlike": []}
        | {"requests_per_minute": 0, "requests_burst": 0, "concurrent_requests": 1},
    ]


def test_without_clients_limits_are_for_every_address() -> None:
    (limit,) = nginx_ingress_limits(ALL, [], {})
    assert (limit["selector"], limit["unlike"]) == ('""', [])
    assert nginx_ingress_limits(NONE, [], {}) == []


def test_retry_after_is_that_of_the_limits_which_count_the_client() -> None:
    clients = [client("slow", requests_per_minute=1), client("fast", KEY + "1", requests_per_minute=600)]
    limits = nginx_ingress_limits(ALL, clients, {"batch": {"requests_per_minute": 20}})
    assert nginx_ingress_retry_after(limits) == 3, "of a pool"
    assert [nginx_ingress_retry_after(limits, name) for name in ("slow", "fast")] == [60, 3]
    assert nginx_ingress_retry_after(nginx_ingress_limits(ALL, [], {})) == 1
    assert nginx_ingress_retry_after([]) == 1


@pytest.mark.parametrize(("clients", "pools"), [("x", {}), (["x"], {}), ([], []), ([], {"a": None}), ({}, {})])
def test_a_wrong_shape(clients: Any, pools: Any) -> None:
    (line,) = nginx_ingress_problems(clients, pools, NONE)
    assert line.startswith(
        ("nginx_ingress_clients: allowed is a list", "nginx_ingress_pools: allowed is a dict of dicts")
    )


def test_words_of_nginx_are_no_names() -> None:
    (line,) = nginx_ingress_problems([client("default")], {}, NONE)
    assert line.startswith("nginx_ingress_clients[0].name is 'default'")
    (line,) = nginx_ingress_problems([], {"a": {"x_models": ["include"]}}, NONE)
    assert line.startswith("nginx_ingress_pools.a.x_models is ['include']")


@pytest.mark.parametrize("address", ["192.0.2.1", "0.0.0.0", "::", "2001:db8::1"])  # noqa: S104 - what may be set
def test_addresses_and_networks_have_no_problem(address: str) -> None:
    networks = [address, "192.0.2.0/24", "2001:db8::/32"]
    assert nginx_ingress_address_problems([address], networks, networks) == []
    assert nginx_ingress_address_problems([], [], []) == []


@pytest.mark.parametrize("address", ["ingress-1", "192.0.2", "192.0.2.1:80", "[::1]", "fe80::1%eth0", "", 1, None])
def test_what_is_no_address_is_refused(address: object) -> None:
    (line,) = nginx_ingress_address_problems([address], [], [])
    assert line == (
        f"nginx_ingress_status_addresses has {address!r}; allowed is an IP address of the host, 0.0.0.0 or ::; "
        "correct it"
    )
    lines = nginx_ingress_address_problems([], [address], [address])
    for name, line in zip(("status_allowed", "connections_exempt"), lines, strict=True):
        assert line.startswith(
            f"nginx_ingress_{name} has {address!r}; allowed is an IP address or a network such as 192.0.2.0/24; "
            "correct it"
        )


def test_a_network_of_no_use_is_refused_with_the_reason() -> None:
    (line,) = nginx_ingress_address_problems([], ["192.0.2.1/24"], [])
    assert line.endswith("correct it (192.0.2.1/24 has host bits set)")
    assert nginx_ingress_address_problems(["192.0.2.0/24"], [], [])


def test_networks_are_told_apart_by_version() -> None:
    networks = ["192.0.2.1", "2001:db8::1", "192.0.2.0/24", "2001:db8::/32"]
    assert nginx_ingress_networks(networks, 4) == ["192.0.2.1", "192.0.2.0/24"]
    assert nginx_ingress_networks(networks, 6) == ["2001:db8::1", "2001:db8::/32"]


def test_files_of_the_role_have_their_names_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "lua" / "work").mkdir(parents=True)
    (tmp_path / "lua" / "work" / "pick.lua").write_bytes(b"abc")
    (tmp_path / "lua" / "a.lua").write_bytes(b"")
    assert nginx_ingress_role_files(str(tmp_path)) == [
        {"name": "lua/a.lua", "checksum": "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"name": "lua/work/pick.lua", "checksum": "a9993e364706816aba3e25717850c26c9cd0d89d"},  # FIPS 180-2, B.1
    ]


def test_files_are_named_below_their_folder() -> None:
    found = [{"path": "/a/b/c.conf", "checksum": "1", "mode": "0644"}, {"path": "/a/b/d/e.lua", "checksum": "2"}]
    assert nginx_ingress_named_files(found, "/a/b") == [
        {"name": "c.conf", "checksum": "1"},
        {"name": "d/e.lua", "checksum": "2"},
    ]
