"""The roles in somebody's own playbook, with settings of Ansible of one's own: what the roles say, and when."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.conftest import FakeNode
from tests.integration.test_day2_playbooks import Site
from tests.playbook import ROOT, play

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
NODES = [{"name": "node-a", "host": "192.0.2.21"}]


def run(folder: Path, content: dict[str, Any], *options: str, **hosts: Any) -> tuple[int, str]:
    """Run a play for ingress-1, which is this machine, in check mode; return the exit code and the output as a line.

    Args:
        folder: of the playbook and the inventory.
        content: of the play.
        options: of ansible-playbook.
        hosts: variables of ingress-1.
    """
    playbook = folder / "own" / "play.yml"
    playbook.parent.mkdir(exist_ok=True)
    whole = {"hosts": "all", "gather_facts": False, **content}
    playbook.write_text(yaml.safe_dump([whole], sort_keys=False), encoding="utf-8")
    (folder / "group_vars").mkdir(exist_ok=True)  # not the project's
    inventory = {"ingress": {"hosts": {"ingress-1": {**LOCAL, **hosts}}}}
    result = play(folder, inventory, playbook, "--check", *options)
    return result.returncode, " ".join((result.stdout + result.stderr).split()).replace("''", "'")


NGINX = {"role": "nginx_ingress"}
LINE = "ingress-1: nginx_ingress_client is not a variable of the role nginx_ingress; docs/configuration.md has all of"


@pytest.mark.parametrize("level", ["host", "play", "role", "beside the playbook", "beside the inventory", "extra"])
def test_a_misspelt_variable_is_found_at_every_level(tmp_path: Path, level: str) -> None:
    """With this name nginx would serve everybody. Neither the group nor the inventory is the project's."""
    wrong: dict[str, Any] = {"nginx_ingress_client": [{"name": "a", "key": "0123456789abcdef"}]}
    content: dict[str, Any] = {"roles": [NGINX]}
    options = []
    if level == "play":
        content["vars"] = wrong
    elif level == "role":
        content["roles"] = [{**NGINX, "vars": wrong}]
    elif level == "extra":
        options = ["-e", json.dumps(wrong)]
    elif level.startswith("beside"):
        folder = (tmp_path / "own" if "playbook" in level else tmp_path) / "group_vars"
        folder.mkdir(parents=True)
        (folder / "ingress.yml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    code, said = run(tmp_path, content, *options, **(wrong if level == "host" else {}))
    assert code == 2
    assert LINE in said
    assert "did you mean nginx_ingress_clients?" in said
    assert "0123456789abcdef" not in said
    assert "argument_spec" not in said


@pytest.mark.parametrize(
    ("roles", "line"),
    [
        (
            [{**NGINX, "vars": {"nginx_ingress_listen_port": "eight"}}],
            'ingress-1: nginx_ingress_listen_port is "eight"; allowed is a whole number from 1 to 65535; correct it',
        ),
        (
            [{"role": "vllm_nginx_lb", "vars": {"vllm_nginx_lb_nodes": NODES, "vllm_nginx_lb_fall": 0}}],
            "ingress-1: vllm_nginx_lb_fall is 0; allowed is a number from 1 to 1000; correct it",
        ),
        (
            [{**NGINX, "vars": {"nginx_ingress_listen_port": 0, "nginx_ingress_status_port": 0}}],
            "from 1 to 65535; correct it ingress-1: nginx_ingress_status_port is 0; allowed",
        ),
        (
            [{"role": "vllm_nginx_lb", "vars": {"vllm_nginx_lb_nodes": [{"name": "a", "host": "{{ vault_x }}"}]}}],
            "ingress-1: vllm_nginx_lb_nodes needs vault_x, which is not defined; define it",
        ),
        (
            [{"role": "keepalived", "vars": {"keepalived_address": "192.0.2.9", "keepalived_preempt_enabled": "yess"}}],
            'ingress-1: keepalived_preempt_enabled is "yess"; allowed is true or false; correct it',
        ),
    ],
    ids=["text for a number", "range", "two", "undefined", "text for a boolean"],
)
def test_a_wrong_value_is_one_line_before_anything_is_touched(
    tmp_path: Path, roles: list[dict[str, Any]], line: str
) -> None:
    code, said = run(tmp_path, {"roles": roles})
    assert code == 2
    assert line in said
    assert "argument_spec" not in said
    assert "ok=1 changed=0" in said  # the one is the file of the checks


@pytest.mark.parametrize("name", ["preflight", "names", "status", "drains"])
def test_a_limit_to_a_node_says_that_nodes_are_data(tmp_path: Path, name: str) -> None:
    groups = {
        "ingress": {"hosts": {"ingress-1": {}}},
        "vllm": {"hosts": {"node-a": {"ansible_host": "192.0.2.21"}}},
    }
    result = play(tmp_path, groups, ROOT / "playbooks" / f"{name}.yml", "--limit", "node-a")
    assert result.returncode == 2
    said = " ".join(result.stdout.split())
    assert "--limit node-a is for node-a, which is no ingress host; vLLM nodes are data only" in said
    assert "leave out --limit, or use --limit ingress-1" in said
    playbook = ROOT / "playbooks" / ("limit.yml" if name in ("status", "drains") else f"{name}.yml")
    assert play(tmp_path, groups, playbook, "--limit", "ingress-1").returncode == 0


def test_roles_ask_for_the_facts_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_GATHERING", "explicit")
    tasks = [
        {
            "import_role": {"name": "debian_host", "tasks_from": "packages"},
            "vars": {"debian_host_packages": ["dpkg"]},
        },
        {"import_role": {"name": "keepalived", "tasks_from": "facts"}},
        {"assert": {"that": "'lo' in ansible_facts['interfaces']"}},
    ]
    code, said = run(tmp_path, {"tasks": tasks}, "-v")
    assert code == 0, said
    assert "Check that the host runs Debian" in said


@pytest.mark.parametrize(
    ("parts", "balancer", "agrees"),
    [
        (["http.conf", "balancer_work.conf"], "work", True),
        (["http.conf"], "upstream", True),
        (["http.conf"], "work", False),
        (["http.conf", "balancer_work.conf"], "upstream", False),
        ([], "work", True),
    ],
)
def test_both_roles_must_have_one_balancer(tmp_path: Path, parts: list[str], balancer: str, agrees: bool) -> None:  # noqa: FBT001
    """In a playbook of one's own, one role may be given another balancer than the other."""
    (tmp_path / "parts.1").mkdir()
    (tmp_path / "parts").symlink_to("parts.1")  # as on a host
    for part in parts:
        (tmp_path / "parts" / part).touch()
    tasks = [{"import_role": {"name": "vllm_nginx_lb", "tasks_from": "same_balancer"}}]
    given: dict[str, Any] = {"__vllm_nginx_lb_upstream_directory": str(tmp_path), "nginx_ingress_balancer": balancer}
    inventory = {"ingress": {"hosts": {"ingress-1": LOCAL}}}
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    result = play(tmp_path, inventory, playbook, **given)
    assert (result.returncode == 0) == agrees, result.stdout
    if not agrees:
        other = {"work": "upstream", "upstream": "work"}[balancer]
        said = " ".join(result.stdout.split())
        assert (
            f"nginx_ingress_balancer is {balancer} for the role vllm_nginx_lb, and nginx is set up with {other}" in said
        )


def test_a_name_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    nodes = {name: FakeNode(name) for name in ("node-a", "node-b")}
    try:
        site = Site(tmp_path, ["ingress-1"], nodes, {"node-b": {"ansible_host": "node-b.invalid"}})
        site.configure()
        file = tmp_path / "ingress-1" / "config.yml"
        config = json.loads(file.read_text())
        config["pools"][0]["nodes"][1]["host"] = "node-b.invalid"
        file.write_text(json.dumps(config))
        (tmp_path / "ingress-1" / "state" / "memory.json").unlink(missing_ok=True)
        site.tick()
        tasks = [{"import_role": {"name": "vllm_nginx_lb", "tasks_from": "unresolved"}}]
        own = {"hosts": "ingress", "gather_facts": False, "tasks": tasks}
        (tmp_path / "unresolved.yml").write_text(yaml.safe_dump([own]), encoding="utf-8")
        code, said = site.play(str(tmp_path / "unresolved"))
        assert code == 0, said
        assert 'ingress-1: node-b: ansible_host "node-b.invalid" does not resolve on this host' in said
        assert "correct ansible_host, or the DNS that this host uses" in said
        assert "node-a: ansible_host" not in said
    finally:
        for node in nodes.values():
            node.stop()


def test_check_mode_on_a_new_host_judges_no_answer(tmp_path: Path) -> None:
    """Check mode asks no server, as nginx is not there yet."""
    part = {"name": "nginx_ingress", "tasks_from": "run.yml"}
    start = "--start-at-task=nginx_ingress : Run | Ask the servers of nginx"
    code, said = run(tmp_path, {"tasks": [{"import_role": part}]}, start, "-v")
    assert code == 0, said
    assert "Check that the servers of nginx answer as they should" in said
