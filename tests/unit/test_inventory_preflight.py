"""What inventory_preflight refuses. Each message names the host, the value, what is allowed and the fix."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from roles.inventory_preflight.preflight_checks.names import hosts_by_variable, name_problems
from roles.inventory_preflight.preflight_checks.nodes import forgotten_settings, preflight_problems
from roles.inventory_preflight.preflight_checks.specs import ROLES
from tests.playbook import ROOT, play

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection, Iterator
    from pathlib import Path

pytestmark = pytest.mark.unmeasured


def node(name: str = "node-a", **changes: Any) -> dict[str, Any]:
    """Return a sound node with some values changed."""
    sound = {"name": name, "host": f"{name}.example", "port": 18090, "scheme": "http", "capacity": 1.0}
    return {**sound, "pool": "llm_cluster", "drain": False, **changes}


def misspelt_variables(variables: dict[str, list[str]], extra: Collection[str] = ()) -> list[str]:
    """Return the problems of names; hosts whose names begin with `ingress` are ingress hosts, the others nodes."""
    ingress_hosts = [host for host in variables if host.startswith("ingress")]
    return name_problems(hosts_by_variable(variables), variables.keys() - set(ingress_hosts), ingress_hosts, extra)


def problems(*nodes: dict[str, Any], **changes: Any) -> list[str]:
    return preflight_problems(list(nodes), **{"ingress_hosts": ["ingress-1"], **changes})


def test_sound_inventory_has_no_problem() -> None:
    assert problems(node(), node("node-b", host="192.0.2.1"), node("node-c", host="2001:db8::1")) == []


def test_text_is_as_good_as_numbers() -> None:
    """ansible-core 2.16 turns every value that goes through the inventory into text."""
    assert problems(node(port="18090", capacity="0.5", drain="False"), node("node-b", drain="yes")) == []


UP_TO_65535 = "allowed is a number from 0 to 65535"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"port": 0}, "node-a: vllm_port is 0; allowed is a number from 1 to 65535; correct vllm_port"),
        ({"port": 70000}, "node-a: vllm_port is 70000; allowed is a number from 1 to 65535; correct vllm_port"),
        ({"port": "http"}, "node-a: vllm_port is 'http'; allowed is a number from 1 to 65535; correct vllm_port"),
        ({"port": True}, "node-a: vllm_port is True; allowed is a number from 1 to 65535; correct vllm_port"),
        ({"port": 80.5}, "node-a: vllm_port is 80.5; allowed is a number from 1 to 65535; correct vllm_port"),
        ({"scheme": "ftp"}, "node-a: vllm_scheme is 'ftp'; allowed is one of http, https; correct vllm_scheme"),
        ({"max_conns": -1}, f"node-a: vllm_max_conns is -1; {UP_TO_65535}; correct vllm_max_conns (0 is any number)"),
        ({"drain": "maybe"}, "node-a: vllm_drain is 'maybe'; allowed is true or false; correct vllm_drain"),
    ],
)
def test_value_out_of_range(changes: dict[str, Any], line: str) -> None:
    assert problems(node(**changes), node("node-b")) == [line]


@pytest.mark.parametrize("capacity", [0, 0.001, 101, -1, "fast", float("nan"), float("inf"), True, None, [1]])
def test_capacity_out_of_range(capacity: object) -> None:
    (line,) = problems(node(capacity=capacity))
    assert line.startswith(f"node-a: vllm_capacity is {capacity!r}; allowed is a number from 0.01 to 100")
    assert line.endswith("correct vllm_capacity (1.0 is the usual node; to take a node out, set vllm_drain: true)")


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


def test_pools_that_differ_only_in_case() -> None:
    (line,) = problems(node(), node("node-b", pool="LLM_cluster"))
    assert line.startswith("vllm_pool has the values LLM_cluster, llm_cluster; allowed are names that differ in more")


def test_a_misspelt_variable_of_the_rolling_playbook() -> None:
    (line,) = misspelt_variables({"localhost": ["rolling_node", "rolling_command", "rolling_force", "rolling_nodes"]})
    assert line.startswith("localhost: rolling_node is not a variable of playbooks/rolling.yml; ")
    assert line.endswith("did you mean rolling_nodes?")


def test_pool_drained_as_a_whole() -> None:
    (line,) = problems(node(drain=True), node("node-b", drain="true"), node("node-c", pool="other"))
    assert line.startswith("pool llm_cluster: vllm_drain is true on all of its nodes (node-a, node-b); at least 1 must")


def test_ingress_of_a_pool_without_nodes() -> None:
    (line,) = problems(node(pool="chat"), ingress_pools={"ingress-1": "llm_cluster"})
    assert line == (
        "ingress-1: nginx_ingress_pool is 'llm_cluster', and no node is in it; allowed is one of chat; "
        "correct nginx_ingress_pool, or set vllm_pool: llm_cluster on a node"
    )


NO_SETTING = (
    "is not a setting of a vLLM node; allowed are "
    "vllm_capacity, vllm_drain, vllm_max_conns, vllm_pool, vllm_port, vllm_scheme"
)
NO_VARIABLE = "is not a variable of {}; docs/configuration.md has all of them"


@pytest.mark.parametrize(
    ("name", "role", "guess"),
    [
        ("vllm_prot", None, "vllm_port"),
        ("vllm_lb_policy", "any role", "vllm_nginx_lb_policy"),
        ("vllm_nginx_lb_polcy", "the role vllm_nginx_lb", "vllm_nginx_lb_policy"),
        ("vllm_nginx_lb_listen_port", "the role vllm_nginx_lb", "nginx_ingress_listen_port"),
        ("vllm_nginx_lb_rolling_comand", "the role vllm_nginx_lb", "vllm_nginx_lb_rolling_command"),
        ("nginx_ingress_lisen_port", "the role nginx_ingress", "nginx_ingress_listen_port"),
        ("nginx_ingress_qqq", "the role nginx_ingress", None),
        ("ngnix_ingress_balancer", "any role", "nginx_ingress_balancer"),
        ("keepalived_adress", "the role keepalived", "keepalived_address"),
        ("inventory_preflight_node", "the role inventory_preflight", "inventory_preflight_nodes"),
        ("debian_host_pakages", "the role debian_host", "debian_host_packages"),
        ("nginx_ingress_client", "the role nginx_ingress", "nginx_ingress_clients"),
    ],
)
def test_misspelt_variable_is_found_and_the_right_one_guessed(name: str, role: str | None, guess: str | None) -> None:
    what = NO_VARIABLE.format(role) if role else NO_SETTING
    remedy = f"did you mean {guess}?" if guess else "correct its name or remove it"
    assert misspelt_variables({"ingress-1": ["ansible_host", name]}) == [f"ingress-1: {name} {what}; {remedy}"]


def test_fields_of_something_else_are_one_line_that_names_the_switch() -> None:
    fields = ["vllm_rack", "vllm_serial", "vllm_asset_tag"]
    (line,) = misspelt_variables({f"node-{number}": fields for number in range(200)})
    assert line.startswith(
        "node-0, node-1, node-2 and 197 more: vllm_asset_tag, vllm_rack, vllm_serial begin with vllm_"
    )
    assert "set inventory_preflight_extra_host_variables: [vllm_asset_tag, vllm_rack, vllm_serial] in" in line
    assert misspelt_variables({"node-0": fields}, fields) == []
    others = {"vllm_rack": ["printer"], "rolling_reboot": ["printer"]}
    assert name_problems(others, ["node-a"], ["ingress-1"]) == [], "other hosts are not ours"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"node-a": ["nginx_ingress_clients"], "ingress-1": []},
            "node-a: nginx_ingress_clients is set here, and only ingress hosts have it; move it to them",
        ),
        (
            {"node-a": [], "ingress-1": ["vllm_port"]},
            "ingress-1: vllm_port is set here, and only vLLM nodes have it; move it to them",
        ),
    ],
)
def test_a_variable_that_is_set_where_nothing_reads_it(variables: dict[str, list[str]], line: str) -> None:
    assert misspelt_variables(variables) == [line]
    everywhere = {host: [name for names in variables.values() for name in names] for host in variables}
    assert misspelt_variables(everywhere) == []


def test_a_setting_that_an_older_inventory_does_not_pass_on() -> None:
    variables = {"node-a": {"vllm_max_conns": 8, "vllm_port": 1}, "node-b": {"vllm_max_conns": 8}}
    (line,) = forgotten_settings([node(), node("node-b")], variables)
    assert line.startswith(
        "node-a: vllm_max_conns is set, here and on 1 other node(s), and vllm_node does not pass it on"
    )
    assert line.endswith("copy inventory/group_vars/vllm/vllm.yml of this version into your inventory")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "vllm_nginx_lb_balancer",
            "its successor is nginx_ingress_balancer, which both roles read; remove it",
        ),
        ("vllm_host", "its successor is ansible_host; remove it"),
        ("vllm_name", "its successor is the name of the host in the inventory; remove it"),
        ("keepalived_peer", "its successor is ingress_peer; copy group_vars/ingress/keepalived.yml of this version"),
        ("nginx_ingress_work_prefix_bytes", "nginx remembers whole prompts; remove it"),
        (
            "nginx_ingress_work_prefix_seconds",
            "nginx remembers a prompt while its node probably has it cached; remove it",
        ),
        ("nginx_ingress_work_max_request_kib", "a prompt counts in full, less what its node has cached; remove it"),
    ],
)
def test_former_variable_is_told_what_to_do(name: str, remedy: str) -> None:
    assert misspelt_variables({"ingress-1": [name]}) == [f"ingress-1: {name} is not a variable; {remedy}"]


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_is_known(role: str) -> None:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    names = {name for spec in specs["argument_specs"].values() for name in spec.get("options", {})}
    assert len(names) > 3
    assert misspelt_variables({"ingress-1": sorted(names)}) == []


def test_variables_of_others_are_no_misspellings() -> None:
    others = [
        *("vllm_node", "vllm_node_name", "ansible_port", "inventory_hostname", "group_names", "nginx_port"),
        *("__vllm_nginx_lb_balancer", "node", "rolling_command", "ingress_peer", "vllm_extra"),
        "inventory_preflight_host_variables",
    ]
    assert misspelt_variables({"ingress-1": others}, ["vllm_extra"]) == []


def test_a_misspelling_of_many_hosts_is_told_once() -> None:
    found = misspelt_variables({f"node-{letter}": ["vllm_prot"] for letter in "abcde"})
    assert [line.split(": ")[0] for line in found] == ["node-a, node-b, node-c and 2 more"]


def test_every_problem_is_told_at_once() -> None:
    assert len(problems(node(port=0, scheme="x"), node("node b", host="192.0.2.1", capacity=0), ingress_hosts=[])) == 5


# --- The playbook itself, with the example's group_vars ---------------------------------------------------------


def run_preflight(
    folder: Path, hosts: dict[str, Any], *options: str, name: str = "preflight"
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on an inventory of these hosts; it must not connect anywhere."""
    # Any attempt to connect fails at once.
    return play(folder, hosts, ROOT / "playbooks" / f"{name}.yml", *options, ansible_ssh_executable="/bin/false")


def groups(*, ingress: dict[str, Any] | None = None, vllm: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "ingress": {"hosts": {"ingress-1": {}} if ingress is None else ingress},
        "vllm": {"hosts": {"node-a": {"ansible_host": "192.0.2.1"}} if vllm is None else vllm},
    }


def test_playbook_accepts_the_least_inventory(tmp_path: Path) -> None:
    result = run_preflight(tmp_path, groups(), "-v")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 problem(s), 1 ingress host(s)" in result.stdout


def test_playbook_tells_everything_at_once(tmp_path: Path) -> None:
    vllm = {"node-a": {"vllm_prot": 1, "vllm_port": 99999}, "node-b": {"ansible_host": "a b"}}
    result = run_preflight(tmp_path, groups(ingress={}, vllm=vllm))
    assert result.returncode != 0
    for line in (
        "5 problem(s) in the inventory:",
        "inventory: there is no ingress host",
        "node-a: ansible_host is not set",
        "node-a: vllm_port is 99999; allowed is a number from 1 to 65535",
        "node-b: ansible_host is 'a b'",
        "node-a: vllm_prot is not a setting of a vLLM node",
    ):
        assert line in result.stdout
    assert r"\n" not in result.stdout, "each problem has a line of its own"


def test_playbook_names_the_node_whose_variable_is_not_defined(tmp_path: Path) -> None:
    vllm = {
        "node-a": {"ansible_host": "192.0.2.1", "vllm_port": "{{ port_of_the_site }}"},
        "node-b": {"ansible_host": "192.0.2.2", "vllm_capacity": 0},
    }
    result = run_preflight(tmp_path, groups(vllm=vllm))
    assert result.returncode == 2
    said = " ".join(result.stdout.split())
    assert "2 problem(s) in the inventory:" in said
    assert "node-a: vllm_node needs port_of_the_site, which is not defined; define it" in said
    assert "node-b: vllm_capacity is 0; allowed is a number from 0.01 to 100" in said


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


# Settings of one ingress host each, and the message about them.
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
        'HOST: vllm_nginx_lb_policy is "magic"; allowed is one of capacity, stepped, static; correct it',
    ),
    (
        {"vllm_nginx_lb_method": "magic"},
        'HOST: vllm_nginx_lb_method is "magic"; allowed is one of least_conn, round_robin, random_two_least_conn,',
    ),
    (
        {"nginx_ingress_balancer": "magic"},
        'HOST: nginx_ingress_balancer is "magic"; allowed is one of work, upstream;',
    ),
    (
        {"nginx_ingress_work_affinity": "magic"},
        'HOST: nginx_ingress_work_affinity is "magic"; allowed is one of off, session, prefix; correct it',
    ),
    (
        {"nginx_ingress_work_affinity": False},
        "HOST: nginx_ingress_work_affinity is false; allowed is one of off, session, prefix; put it in quotes, because",
    ),
    (
        {"nginx_ingress_upstream_scheme": "ftp"},
        'HOST: nginx_ingress_upstream_scheme is "ftp"; allowed is one of http, https; correct it',
    ),
    ({"nginx_ingress_server_names": "a,b"}, 'HOST: nginx_ingress_server_names is "a,b"; allowed is a list; correct it'),
    (
        {"nginx_ingress_listen_port": "http"},
        'HOST: nginx_ingress_listen_port is "http"; allowed is a whole number from 1 to 65535; correct it',
    ),
    (
        {"nginx_ingress_read_timeout_seconds": 30},
        "HOST: nginx_ingress_read_timeout_seconds is 30; allowed is more than nginx_ingress_next_upstream_timeout",
    ),
    (
        {"nginx_ingress_send_timeout_seconds": 20},
        "HOST: nginx_ingress_send_timeout_seconds is 20; allowed is more than nginx_ingress_next_upstream_timeout",
    ),
    (
        {"nginx_ingress_connect_timeout_seconds": 30},
        "HOST: nginx_ingress_connect_timeout_seconds is 30; allowed is less than nginx_ingress_next_upstream_timeout",
    ),
    (
        {"nginx_ingress_listen_port": 0},
        "HOST: nginx_ingress_listen_port is 0; allowed is a whole number from 1 to 65535; correct it",
    ),
    (
        {"vllm_nginx_lb_interval_seconds": "10s"},
        'HOST: vllm_nginx_lb_interval_seconds is "10s"; allowed is a whole number; correct it',
    ),
    (
        {"keepalived_address": "192.0.2.9", "keepalived_router_id": "one"},
        'HOST: keepalived_router_id is "one"; allowed is a whole number from 1 to 255; correct it',
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
        "HOST: nginx_ingress_upstream_api_key (not shown); allowed is a text of A-Z a-z 0-9",
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
        'HOST: nginx_ingress_locations[0] is "/v1/chat/completions { }"; allowed is a path that begins with /',
    ),
    (
        {"nginx_ingress_worker_rlimit_nofile": 1024},
        "HOST: nginx_ingress_worker_rlimit_nofile is 1024; allowed is 0 or at least",
    ),
    (
        {"nginx_ingress_connections_per_address": 28672},
        "HOST: nginx_ingress_connections_per_address is 28672; allowed is 0 (no limit) or less than nginx_ingress_conn",
    ),
    (
        {"nginx_ingress_connections": 32768},
        "HOST: nginx_ingress_connections is 32768; allowed is 0 (no limit) or less than half of nginx_ingress_worker_c",
    ),
    (
        {"nginx_ingress_connections_exempt": ["192.0.2.1/24"]},
        "HOST: nginx_ingress_connections_exempt has '192.0.2.1/24'; allowed is an IP address or a network such as",
    ),
    (
        {"nginx_ingress_upstream_host_header": "a b"},
        'HOST: nginx_ingress_upstream_host_header is "a b"; allowed is a host name; correct it',
    ),
    (
        {"vllm_nginx_lb_upstream_template_file": "mine.j2"},
        'vllm_nginx_lb_upstream_template_file is "mine.j2"; work needs the URL, which alone says',
    ),
    # What used to fail late, on the host.
    (
        {"vllm_nginx_lb_capacity_lowest_weight": 500},
        "HOST: vllm_nginx_lb_capacity_lowest_weight is 500; allowed is a number from 1 to 100; correct it",
    ),
    (
        {"vllm_nginx_lb_scrape_workers": "eight"},
        'HOST: vllm_nginx_lb_scrape_workers is "eight"; allowed is a whole number; correct it',
    ),
    ({"nginx_ingress_tls_enabled": "yess"}, 'HOST: nginx_ingress_tls_enabled is "yess"; allowed is true or false;'),
    (
        {"vllm_nginx_lb_pools": {"llm_cluster": {"max_fails": -1}}},
        "HOST: vllm_nginx_lb_pools.llm_cluster.max_fails is -1; allowed is a number from 0 to 1e+06; correct it",
    ),
    (
        {"vllm_nginx_lb_nodes": [{"name": "a", "host": "192.0.2.1", "port": 70000}]},
        "HOST: vllm_nginx_lb_nodes[a].port is 70000; allowed is a number from 1 to 65535; correct it",
    ),
    (
        {"vllm_nginx_lb_nodes": [{"name": "a", "hots": "x"}]},
        'HOST: vllm_nginx_lb_nodes[0] has "hots"; allowed is name,',
    ),
    (
        {"vllm_nginx_lb_min_weight_change_ratio": 0.5},
        "HOST: vllm_nginx_lb_min_weight_change_ratio is 0.5; allowed is at most vllm_nginx_lb_capacity_min_change",
    ),
    (
        {"vllm_nginx_lb_stepped_kv_cache": [{"at_least": 0.5, "weight": 11}]},
        "HOST: vllm_nginx_lb_stepped_kv_cache[0].weight is 11; allowed is one of levels [100, 60, 30, 10];",
    ),
    (
        {"nginx_ingress_work_affinity_factor": 0.5},
        "HOST: nginx_ingress_work_affinity_factor is 0.5; allowed is a num",
    ),
    (
        {"nginx_ingress_clients": [{"name": "a", "key": "{{ vault_key_of_a }}"}]},
        "HOST: nginx_ingress_clients needs vault_key_of_a, which is not defined; define it (a vault variable:",
    ),
    (
        {"vllm_nginx_lb_api_key": "{{ vault_of_nodes }}"},
        "HOST: vllm_nginx_lb_api_key needs vault_of_nodes, which is not defined; define it",
    ),
    ({"nginx_ingress_access_log_file": "{{ 1 + }}"}, "HOST: nginx_ingress_access_log_file cannot be evaluated: "),
    (
        {"keepalived_interface": 0, "keepalived_address": "192.0.2.9"},
        "put it in quotes, because YAML reads it as a num",
    ),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the messages about ingress hosts with these settings, from one run with a host for each."""
    hosts = {f"ingress-{number}": variables for number, (variables, _) in enumerate(REFUSED)}
    result = run_preflight(tmp_path_factory.mktemp("refused"), groups(ingress=hosts))
    assert result.returncode != 0
    said = re.split(
        r"(?:fatal|failed): \[(ingress-\d+)\]",
        " ".join(result.stdout.partition("PLAY RECAP")[0].split()).replace("''", "'"),
    )
    found = dict.fromkeys(hosts, "")
    for host, text in zip(said[1::2], said[2::2], strict=True):
        found[host] += text
    assert all(len(text) < 3000 for text in found.values()), "a message is a few lines, and no argument spec"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(variables) for variables, _ in REFUSED])
def test_playbook_checks_the_ingress_settings(refusals: dict[str, str], number: int) -> None:
    host = f"ingress-{number}"
    assert REFUSED[number][1].replace("HOST", host) in refusals[host]


# --- Misspelt variables, wherever they are set ----------------------------------------------------------------------

MISSPELT = "nginx_ingress_lisen_port is not a variable of the role nginx_ingress;"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preflight", "drain"])
@pytest.mark.parametrize("level", ["host", "group", "extra"])
def test_playbooks_find_a_misspelt_variable_at_every_level(tmp_path: Path, level: str, name: str) -> None:
    ingress: dict[str, Any] = {"ingress-1": {}, "ingress-2": {}}
    inventory, options = groups(ingress=ingress), []
    if level == "host":
        ingress["ingress-2"] = {"nginx_ingress_lisen_port": 80}
    elif level == "group":
        inventory["ingress"]["vars"] = {"nginx_ingress_lisen_port": 80}
    else:
        options = ["-e", "nginx_ingress_lisen_port=80"]
    result = run_preflight(tmp_path, inventory, *options, name=name)
    assert result.returncode == 2
    hosts = {"host": "ingress-2", "group": "ingress-1, ingress-2", "extra": "ingress-1, ingress-2, node-a"}[level]
    assert f"{hosts}: {MISSPELT}" in result.stdout
    assert "did you mean nginx_ingress_listen_port?" in result.stdout


@pytest.mark.slow
def test_playbook_says_what_to_do_about_former_variables(tmp_path: Path) -> None:
    former = {"vllm_nginx_lb_balancer": "upstream", "nginx_ingress_work_prefix_bytes": 16384}
    result = run_preflight(tmp_path, groups(ingress={"ingress-1": former}))
    assert result.returncode == 2
    assert (
        "ingress-1: vllm_nginx_lb_balancer is not a variable; its successor is nginx_ingress_balancer" in result.stdout
    )
    assert (
        "ingress-1: nginx_ingress_work_prefix_bytes is not a variable; nginx remembers whole prompts; remove it"
        in result.stdout
    )


def names_in(data: object) -> Iterator[str]:
    """Yield the keys of all mappings in what a YAML file holds."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield str(key)
            yield from names_in(value)


@pytest.mark.parametrize("folder", ["inventory", "demo/inventory", "molecule"])
def test_no_inventory_of_the_project_has_a_misspelt_variable(folder: str) -> None:
    files = [file for file in (ROOT / folder).rglob("*.yml") if "inventory" in file.parts]
    names = {name for file in files for name in names_in(yaml.safe_load(file.read_text(encoding="utf-8")))}
    assert any(name.startswith("nginx_ingress_") for name in names)
    assert misspelt_variables({"ingress-1": sorted(names), "node-a": sorted(names)}) == []
