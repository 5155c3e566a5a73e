"""playbooks/nodes.yml, run by Ansible on ingress hosts that are folders of this machine, with the real script.

In place of systemd there is a stand-in for `systemctl`, whose service is one tick of every host.
"""

from __future__ import annotations

import getpass
import grp
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.conftest import PYTHON, ROOT, SCRIPT, FakeNode
from tests.playbook import play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # Ansible takes seconds for a playbook
MANY = 1000
HOSTS = ("ingress-1", "ingress-2")
PROGRAM = f"""\
#!/bin/sh
cd "$(dirname "$0")" || exit
exec {PYTHON} {SCRIPT} --config "${{CONFIG:-config.yml}}" "$@"
"""
# The role gives the path of a file to check with --config, as the real script takes it.
CHECKER = f"""\
#!/bin/sh
exec {PYTHON} {SCRIPT} "$@"
"""
SYSTEMCTL = """\
#!/bin/sh
cd "$(dirname "$0")" || exit
exec 9>>lock && flock 9
echo "$*" >>asked
case "$1 $2" in
    "show "*) printf 'Id=%s\\nLoadState=loaded\\nActiveState=active\\n' "$2";;
    "start "*service*) for host in ingress-*; do $host/balancer run || exit; done;;
esac
"""


@dataclass
class Site:
    """Two ingress hosts, and nodes of which one answers."""

    folder: Path
    answering: FakeNode

    def nodes(self, count: int) -> dict[str, dict[str, Any]]:
        """Return the lines of so many nodes. The first one answers, the others refuse connections."""
        lines = {
            f"node-{number:04}": {"ansible_host": f"127.0.{1 + number // 250}.{1 + number % 250}"}
            for number in range(count)
        }
        lines["node-0000"] = {"ansible_host": "127.0.0.1"}
        return {name: {**line, "vllm_port": self.answering.port} for name, line in lines.items()}

    def run(self, playbook: Path, nodes: dict[str, dict[str, Any]], *options: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook; return its exit code, and its output as one line."""
        inventory = {
            "ingress": {"hosts": {host: {"ansible_connection": "local"} for host in HOSTS}},
            "vllm": {"hosts": nodes},
        }
        root = f"{self.folder}/{{{{ inventory_hostname }}}}"
        given = {
            "ansible_become": False,
            "ansible_python_interpreter": PYTHON,
            "__vllm_nginx_lb_command": f"{root}/balancer",
            "__vllm_nginx_lb_script": str(self.folder / "checker"),
            "__vllm_nginx_lb_config_file": f"{root}/config.yml",
            "__vllm_nginx_lb_state_directory": f"{root}/state",
            "__vllm_nginx_lb_upstream_directory": f"{root}/nginx",
            "__vllm_nginx_lb_owner": getpass.getuser(),
            "__vllm_nginx_lb_user": grp.getgrgid(os.getgid()).gr_name,
            "nginx_ingress_balancer": "upstream",
            "vllm_nginx_lb_confirm_url": "",
            "vllm_nginx_lb_test_command": ["true"],
            "vllm_nginx_lb_reload_command": ["true"],
            "vllm_nginx_lb_fall": 1,
            **variables,
        }
        done = play(self.folder, inventory, playbook, *options, path=str(self.folder), **given)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def set_up(self, nodes: dict[str, dict[str, Any]]) -> None:
        """Write config.yml as site.yml does, and run a tick."""
        tasks: list[dict[str, Any]] = [
            {"import_role": {"name": "vllm_nginx_lb", "tasks_from": "config"}},
            {
                "copy": {
                    "content": "{{ __vllm_nginx_lb_config }}",
                    "dest": "{{ __vllm_nginx_lb_config_file }}",
                    "mode": "0640",
                }
            },
            {"command": "{{ __vllm_nginx_lb_command }} run"},
        ]
        playbook = self.folder / "set_up.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": "ingress", "gather_facts": False, "tasks": tasks}]))
        code, said = self.run(playbook, nodes)
        assert code == 0, said

    def change(self, nodes: dict[str, dict[str, Any]], *options: str, **variables: Any) -> tuple[int, str]:
        """Run playbooks/nodes.yml."""
        return self.run(ROOT / "playbooks" / "nodes.yml", nodes, *options, **variables)

    def states(self, host: str) -> dict[str, str]:
        """Return the state of each node as a host's last tick has it."""
        status = json.loads((self.folder / host / "state" / "status.json").read_text())
        return {node["name"]: node["state"] for pool in status["pools"] for node in pool["nodes"]}

    def files(self) -> dict[str, str]:
        """Return a checksum of each file of the hosts."""
        return {
            str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for host in HOSTS
            for file in (self.folder / host).rglob("*")
            if file.is_file()
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Set up the folders of two hosts, without config.yml."""
    programs = {"systemctl": SYSTEMCTL, "checker": CHECKER, **{f"{host}/balancer": PROGRAM for host in HOSTS}}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for host in HOSTS:
        (tmp_path / host / "nginx").mkdir()
        (tmp_path / host / "nginx" / "parts").write_text("the configuration of nginx\n")
    node = FakeNode("node-0000")
    yield Site(tmp_path, node)
    node.stop()


def test_nodes_alone_change_at_a_thousand_nodes(site: Site) -> None:
    nodes = site.nodes(MANY)
    site.set_up(nodes)
    before = site.files()

    nodes["node-1000"] = {"ansible_host": "127.0.9.1", "vllm_port": site.answering.port}
    del nodes["node-0003"]
    nodes["node-0005"]["vllm_drain"] = True
    nodes["node-0007"]["vllm_capacity"] = 0.5
    code, said = site.change(nodes)
    assert code == 0, said
    assert said.count("changed: added node-1000; removed node-0003; changed node-0005, node-0007") == len(HOSTS)
    assert said.count(":8080/v1 serves 1000 nodes: 1 up, 998 down") == len(HOSTS)
    for host in HOSTS:
        states = site.states(host)
        assert len(states) == MANY
        assert "node-0003" not in states
        assert (states["node-0000"], states["node-0005"]) == ("up", "drained")
    after = site.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {f"{host}/config.yml" for host in HOSTS} <= changed
    # Besides the state and the published file, with its backup, nothing else changes.
    others = {name for name in changed if "/state/" not in name and "upstream.conf" not in name}
    assert others == {f"{host}/config.yml" for host in HOSTS}

    # The same inventory once more: no file is written, and no tick is run.
    (site.folder / "asked").unlink()
    code, said = site.change(nodes)
    assert code == 0, said
    assert said.count("changed: nothing") == len(HOSTS)
    assert "start vllm-nginx-lb.service" not in (site.folder / "asked").read_text()
    assert {name: text for name, text in site.files().items() if "/state/" not in name} == {
        name: text for name, text in after.items() if "/state/" not in name
    }


@pytest.mark.parametrize(
    ("line", "variables", "words"),
    [
        ({}, {"vllm_nginx_lb_policy": "stepped"}, "(pools.llm_cluster.policy of "),
        ({}, {"nginx_ingress_balancer": "work"}, "(nginx.balancer, "),
        ({"vllm_pool": "batch"}, {}, "(pools.batch."),
        ({"vllm_port": 70000}, {}, "node-0001: vllm_port is 70000; allowed is a number from 1 to 65535"),
        ({"vllm_capacity": "{{ nowhere }}"}, {}, "nowhere"),
        ({"vllm_capacty": 2}, {}, "did you mean vllm_capacity?"),
    ],
    ids=["policy", "balancer", "pool", "wrong", "undefined", "misspelt"],
)
def test_what_is_more_than_nodes_is_refused(
    site: Site, line: dict[str, Any], variables: dict[str, Any], words: str
) -> None:
    nodes = site.nodes(3)
    site.set_up(nodes)
    before = site.files()
    nodes["node-0001"].update(line)
    nodes["node-0002"]["vllm_drain"] = True
    code, said = site.change(nodes, **variables)
    assert code == 2, said
    assert words in said
    assert ("run site.yml" in said) == words.startswith("(")
    assert site.files() == before


def test_a_host_that_was_never_set_up_is_refused(site: Site) -> None:
    code, said = site.change(site.nodes(2))
    assert code == 2
    assert (
        "config.yml is not there; nodes.yml changes the nodes of a host that site.yml has set up; run site.yml" in said
    )
    assert not (site.folder / "ingress-1" / "config.yml").exists()


def test_a_host_learns_of_a_drain_that_it_missed(site: Site) -> None:
    nodes = site.nodes(3)
    site.set_up(nodes)
    drain = [str(site.folder / "ingress-1" / "balancer"), "drain", "node-0001", "--reason", "a fan is broken"]
    subprocess.run(drain, check=True)
    nodes["node-0002"]["vllm_capacity"] = 0.5
    code, said = site.change(nodes)
    assert code == 0, said
    assert [site.states(host)["node-0001"] for host in HOSTS] == ["drained", "drained"]


def test_a_limit_to_nodes_is_explained(site: Site) -> None:
    nodes = site.nodes(2)
    site.set_up(nodes)
    before = site.files()
    code, said = site.change(nodes, "--limit", "node-0001")
    assert code == 2, said
    assert "--limit node-0001 is for node-0001, which is no ingress host" in said
    assert site.files() == before
