"""What inventory_preflight refuses, and that its words name the host, the value, what is allowed and the fix."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from roles.inventory_preflight.filter_plugins.inventory_preflight import preflight_problems
from tests.playbook import ROOT, play

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = pytest.mark.unmeasured


def node(name: str = "node-a", **changes: Any) -> dict[str, Any]:
    """Return a sound node with some values changed."""
    sound = {"name": name, "host": f"{name}.example", "port": 18090, "scheme": "http", "capacity": 1.0}
    return {**sound, "pool": "llm_cluster", "drain": False, **changes}


def problems(*nodes: dict[str, Any], **changes: Any) -> list[str]:
    return preflight_problems(list(nodes), **{"ingress_hosts": ["ingress-1"], **changes})


def test_sound_inventory_has_no_problem() -> None:
    assert problems(node(), node("node-b", host="192.0.2.1"), node("node-c", host="2001:db8::1")) == []


def test_text_is_as_good_as_numbers() -> None:
    """ansible-core 2.16 turns every value that goes through the inventory into text."""
    assert problems(node(port="18090", capacity="0.5", drain="False"), node("node-b", drain="yes")) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"port": 0}, "node-a: vllm_port is 0; allowed is 1 to 65535; correct vllm_port"),
        ({"port": 70000}, "node-a: vllm_port is 70000; allowed is 1 to 65535; correct vllm_port"),
        ({"port": "http"}, "node-a: vllm_port is 'http'; allowed is 1 to 65535; correct vllm_port"),
        ({"port": True}, "node-a: vllm_port is True; allowed is 1 to 65535; correct vllm_port"),
        ({"port": 80.5}, "node-a: vllm_port is 80.5; allowed is 1 to 65535; correct vllm_port"),
        ({"scheme": "ftp"}, "node-a: vllm_scheme is 'ftp'; allowed is http or https; correct vllm_scheme"),
        (
            {"max_conns": -1},
            "node-a: vllm_max_conns is -1; allowed is 0 (any number) to 65535; correct vllm_max_conns",
        ),
        ({"drain": "maybe"}, "node-a: vllm_drain is 'maybe'; allowed is true or false; correct vllm_drain"),
    ],
)
def test_value_out_of_range(changes: dict[str, Any], line: str) -> None:
    assert problems(node(**changes), node("node-b")) == [line]


@pytest.mark.parametrize("capacity", [0, 0.001, 101, -1, "fast", float("nan"), float("inf"), True, None, [1]])
def test_capacity_out_of_range(capacity: object) -> None:
    (line,) = problems(node(capacity=capacity))
    assert line.startswith(f"node-a: vllm_capacity is {capacity!r}; allowed is a number from 0.01 to 100")
    assert line.endswith("correct vllm_capacity (to take a node out, set vllm_drain: true)")


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1:8000",
        "http://node-a",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "10.0.0.256",
        "10.0.0",
        "0.0.0.0",  # noqa: S104 - it must be refused
        "224.0.0.1",
        "-node",
        "node a",
        "node;",
        "node}",
        "node$x",
        "a..b",
        "x" * 300,
    ],
)
def test_address_that_nginx_could_not_take(host: str) -> None:
    (line,) = problems(node(host=host))
    assert line.startswith(f"node-a: ansible_host is {host!r}; allowed is an IP address")


@pytest.mark.parametrize("host", ["", None])
def test_address_missing(host: object) -> None:
    (line,) = problems(node(host=host))
    assert line.startswith("node-a: ansible_host is not set; allowed is an IP address or a host name; add ansible_host")


@pytest.mark.parametrize("name", ["node a", "x" * 64, "node{", "nöde", ""])
def test_name_that_nginx_could_not_take(name: str) -> None:
    (line,) = problems(node(name, host="192.0.2.1"))
    assert line.startswith(f"{name!r}: the inventory name of this vLLM node is not usable; allowed are 1 to 63")


@pytest.mark.parametrize("pool", ["1pool", "a-b", "", "x" * 64, "a b", None])
def test_pool_that_nginx_could_not_take(pool: object) -> None:
    (line,) = problems(node(pool=pool))
    assert line.startswith(f"node-a: vllm_pool is {pool!r}; allowed is a letter, then up to 62")


def test_nothing_to_balance() -> None:
    assert [line.split(";")[0] for line in problems(ingress_hosts=[])] == [
        "inventory: there is no ingress host",
        "inventory: there is no vLLM node",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:DB8:0::1"), ("Node.Example", "node.example")],
)
def test_two_nodes_with_one_address(one: str, other: str) -> None:
    (line,) = problems(node(host=one), node("node-b", host=other, port="18090"))
    assert line.startswith(f"node-a, node-b: ansible_host {other.lower().replace(':0::', '::')} with vllm_port 18090")


def test_one_address_with_two_ports_is_two_nodes() -> None:
    assert problems(node(host="192.0.2.1"), node("node-b", host="192.0.2.1", port=18091)) == []


def test_two_nodes_with_one_name() -> None:
    assert problems(node(), node(host="192.0.2.1")) == [
        "node-a: 2 nodes have this name; allowed is 1; rename all but one"
    ]


def test_mixed_schemes_in_a_pool() -> None:
    (line,) = problems(node(), node("node-b", scheme="https"))
    assert line.startswith("pool llm_cluster: vllm_scheme differs (http on node-a; https on node-b); allowed is one")
    assert problems(node(), node("node-b", scheme="https", pool="other")) == []


def test_pool_drained_as_a_whole() -> None:
    (line,) = problems(node(drain=True), node("node-b", drain="true"), node("node-c", pool="other"))
    assert line.startswith("pool llm_cluster: vllm_drain is true on all of its nodes (node-a, node-b); at least 1 must")


def test_ingress_of_a_pool_without_nodes() -> None:
    (line,) = problems(node(pool="chat"), ingress_pools={"ingress-1": "llm_cluster"})
    assert line == (
        "ingress-1: nginx_ingress_pool is 'llm_cluster', and no node is in it; allowed is one of chat; "
        "correct nginx_ingress_pool, or set vllm_pool: llm_cluster on a node"
    )


def test_misspelt_variable_is_found_and_the_right_one_guessed() -> None:
    known = ["ansible_host", "vllm_port", "vllm_node", "vllm_nginx_lb_policy", "vllm_extra", "inventory_hostname"]
    found = problems(
        node(), host_variables={"node-a": [*known, "vllm_prot", "vllm_zzz"]}, extra_host_variables=["vllm_extra"]
    )
    allowed = "allowed are vllm_capacity, vllm_drain, vllm_max_conns, vllm_pool, vllm_port, vllm_scheme"
    assert found == [
        f"node-a: vllm_prot is not a setting of a vLLM node; {allowed}; did you mean vllm_port?",
        f"node-a: vllm_zzz is not a setting of a vLLM node; {allowed}; remove or rename it",
    ]


def test_every_problem_is_told_at_once() -> None:
    assert len(problems(node(port=0, scheme="x"), node("node b", host="192.0.2.1", capacity=0), ingress_hosts=[])) == 5


# --- The playbook itself, with the example's group_vars ---------------------------------------------------------


def run_preflight(folder: Path, hosts: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook on an inventory of these hosts; it must not connect anywhere."""
    # Any attempt to connect fails at once.
    return play(folder, hosts, ROOT / "playbooks" / "preflight.yml", *options, ansible_ssh_executable="/bin/false")


def groups(*, ingress: dict[str, Any] | None = None, vllm: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "ingress": {"hosts": {"ingress-1": {}} if ingress is None else ingress},
        "vllm": {"hosts": {"node-a": {"ansible_host": "192.0.2.1"}} if vllm is None else vllm},
    }


def test_playbook_accepts_the_least_inventory(tmp_path: Path) -> None:
    result = run_preflight(tmp_path, groups())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The inventory is sound: 1 ingress host(s), 1 vLLM node(s)." in result.stdout


def test_playbook_tells_everything_at_once(tmp_path: Path) -> None:
    vllm = {"node-a": {"vllm_prot": 1, "vllm_port": 99999}, "node-b": {"ansible_host": "a b"}}
    result = run_preflight(tmp_path, groups(ingress={}, vllm=vllm))
    assert result.returncode != 0
    for line in (
        "5 problem(s) in the inventory:",
        "inventory: there is no ingress host",
        "node-a: ansible_host is not set",
        "node-a: vllm_port is 99999; allowed is 1 to 65535",
        "node-b: ansible_host is 'a b'",
        "node-a: vllm_prot is not a setting of a vLLM node",
    ):
        assert line in result.stdout


def test_playbook_checks_a_limited_run_too(tmp_path: Path) -> None:
    vllm = {"node-a": {"ansible_host": "192.0.2.1", "vllm_drain": True}}
    result = run_preflight(tmp_path, groups(vllm=vllm), "--limit", "ingress-1")
    assert result.returncode != 0
    assert "pool llm_cluster: vllm_drain is true on all of its nodes (node-a)" in result.stdout


@pytest.mark.slow
def test_playbook_refuses_two_schemes_where_models_pick_the_pool(tmp_path: Path) -> None:
    ingress = {"ingress-1": {"vllm_nginx_lb_pools": {"safe": {"models": ["m"]}}}}
    vllm = {
        "node-a": {"ansible_host": "192.0.2.1"},
        "node-b": {"ansible_host": "192.0.2.2", "vllm_pool": "safe", "vllm_scheme": "https"},
    }
    result = run_preflight(tmp_path, groups(ingress=ingress, vllm=vllm))
    assert result.returncode != 0
    assert "names models, and vllm_scheme is http and https; allowed is one scheme" in " ".join(result.stdout.split())


# Settings of one ingress host each, and what is said of them.
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"vllm_nginx_lb_interval_seconds": 5},
        "2 * vllm_nginx_lb_confirm_timeout_seconds (2) must be less than vllm_nginx_lb_interval_seconds (5) - 1",
    ),
    (
        {"nginx_ingress_listen_port": 18091},
        "HOST: nginx_ingress_listen_port and nginx_ingress_status_port are both 18091; they must differ",
    ),
    (
        {"vllm_nginx_lb_policy": "magic"},
        'HOST: vllm_nginx_lb_policy is "magic"; allowed is capacity, stepped, static; correct it',
    ),
    (
        {"vllm_nginx_lb_pools": {"chat": {"policy": "static"}}},
        'HOST: vllm_nginx_lb_pools has settings for "chat", and no node is in that pool; allowed is',
    ),
    (
        {"vllm_nginx_lb_pools": {"llm_cluster": {"polcy": "static"}}},
        "HOST: vllm_nginx_lb_pools.llm_cluster has polcy; allowed is method, hash_header,",
    ),
    (
        {"nginx_ingress_pools": {"chat": {"path_prefix": "/chat"}}},
        'HOST: nginx_ingress_pools has "chat", and no node has that vllm_pool; allowed is',
    ),
    (
        {
            "nginx_ingress_pools": {"llm_cluster": {"path_prefix": "/a", "concurrent_requests": 1}},
            "vllm_nginx_lb_pools": {"llm_cluster": {"models": ["m"]}},
        },
        "HOST: nginx_ingress_pools has limits for llm_cluster, and vllm_nginx_lb_pools names models, by which",
    ),
    (
        {"nginx_ingress_clients": [{"name": "a b", "key": "0123456789abcdef"}]},
        "HOST: nginx_ingress_clients[0].name is 'a b'; allowed are 1 to 63 of",
    ),
    (
        {"nginx_ingress_upstream_api_key": 'x"; evil'},
        "HOST: nginx_ingress_upstream_api_key (not shown); allowed are A-Z a-z 0-9",
    ),
    (
        {"nginx_ingress_tls_key_file": "/root/tls.key"},
        'HOST: nginx_ingress_tls_key_file is "/root/tls.key"; allowed is an absolute path of',
    ),
    (
        {"nginx_ingress_tls_enabled": True, "nginx_ingress_tls_listen_port": 8080},
        "HOST: nginx_ingress_listen_port and nginx_ingress_tls_listen_port are both 8080; they must differ;",
    ),
    (
        {"nginx_ingress_access_log_file": "/srv/log/a.log"},
        'HOST: nginx_ingress_access_log_file is "/srv/log/a.log"; allowed is /var/log/nginx/NAME.log',
    ),
    (
        {"nginx_ingress_locations": ["/v1/chat/completions { }"]},
        'HOST: nginx_ingress_locations has "/v1/chat/completions { }"; allowed is a path that begins with /',
    ),
    (
        {"nginx_ingress_worker_rlimit_nofile": 1024},
        "HOST: nginx_ingress_worker_rlimit_nofile is 1024; allowed is 0 or at least",
    ),
    (
        {"nginx_ingress_upstream_host_header": "a b"},
        'HOST: nginx_ingress_upstream_host_header is "a b"; allowed is a host name; correct it',
    ),
    (
        {"vllm_nginx_lb_upstream_template_file": "mine.j2"},
        'vllm_nginx_lb_upstream_template_file is "mine.j2"; work needs the URL, which alone says',
    ),
    (
        {"vllm_nginx_lb_balancer": "upstream"},
        "HOST: vllm_nginx_lb_balancer is upstream and nginx_ingress_balancer is work; they must be the same",
    ),
    (
        {"nginx_ingress_work_prefix_bytes": 131072},
        "HOST: nginx_ingress_work_prefix_bytes is 131072; allowed is up to 65536, which is",
    ),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is said of ingress hosts with these settings, a host for each of them, in one run."""
    hosts = {f"ingress-{number}": variables for number, (variables, _) in enumerate(REFUSED)}
    result = run_preflight(tmp_path_factory.mktemp("refused"), groups(ingress=hosts))
    assert result.returncode != 0
    said = re.split(r"(?:fatal|failed): \[(ingress-\d+)\]", " ".join(result.stdout.split()).replace("''", "'"))
    found = dict.fromkeys(hosts, "")
    for host, text in zip(said[1::2], said[2::2], strict=True):
        found[host] += text
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(variables) for variables, _ in REFUSED])
def test_playbook_checks_the_ingress_settings(refusals: dict[str, str], number: int) -> None:
    host = f"ingress-{number}"
    assert REFUSED[number][1].replace("HOST", host) in refusals[host]
